"""TorchSparseLinear: COO through the torch-sparse package, the engine of the source package; kept as a peer."""

from __future__ import annotations

import math
import sys
import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparsefleet.connections import Connections
from sparsefleet.errors import UserError
from sparsefleet.nn.linear import SparseLinear
from sparsefleet.nn.module import Remap
from sparsefleet.ops.operands import nothing, refuse_tangents, wide


def imported_torch_sparse() -> Any:
    """The package ``torch_sparse``.

    Raises:
        UserError: it is not installed, or was built for another torch.
    """
    if sys.modules.get("torch_sparse") is not None:
        return sys.modules["torch_sparse"]  # at every product
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")  # the package's business, twice in every process
            import torch_sparse
    except (ImportError, OSError) as error:
        raise UserError(
            "layer torch-sparse needs the package torch-sparse",
            cause=str(error),
            fix="python scripts/torch_sparse_wheels.py, in a clone of sparsefleet: builds it for this torch",
        ) from error
    return torch_sparse


class TorchSparseLinear(SparseLinear):
    """A ``SparseLinear`` multiplied by torch-sparse, with ``(nnz,)`` values.

    Args:
        engine: ``spmm`` gathers, multiplies and scatters with temporaries of nnz x batch; ``tensor`` is ``SparseTensor @``, CSR inside.

    Raises:
        UserError: torch-sparse is not installed.
    """

    execution = "torch_sparse"
    indices = ("row", "col")
    row: Tensor
    col: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        density: float = 0.1,
        *positional: Any,
        engine: Literal["spmm", "tensor"] = "spmm",
        **options: Any,
    ) -> None:
        if engine not in ("spmm", "tensor"):
            raise UserError(f"engine must be spmm or tensor, got {engine!r}")
        imported_torch_sparse()
        self.engine = engine
        self._tensor: Any = None
        super().__init__(in_features, out_features, density, *positional, **options)

    def _store(self, conn: Connections) -> None:
        self._take(conn.row, conn.col)
        self.values_ = nn.Parameter(conn.weight.detach().clone())

    def _take(self, row: Tensor, col: Tensor) -> None:
        self.register_buffer("row", row)
        self.register_buffer("col", col)
        self._rebuild()

    def _rebuild(self) -> None:
        self._tensor = None  # made at the first product

    def _misfit(self, stored: dict[str, Tensor]) -> str:
        row, col, n = stored["row"], stored["col"], stored["values_"].numel()
        if row.shape != (n,) or col.shape != (n,):
            return f"{n} values for {row.numel()} rows and {col.numel()} columns"
        n_wrong = int(((row < 0) | (row >= self.out_features) | (col < 0) | (col >= self.in_features)).sum())
        n_wrong += int((torch.diff(row * self.in_features + col) <= 0).sum())
        return f"{n_wrong} of {n} connections lie outside or not in ascending order" if n_wrong else ""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._rebuild()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_tensor": None}  # torch-sparse's class cannot be copied or pickled

    def flat_sites(self) -> Tensor:
        return self.row * self.in_features + self.col

    def set_topology(self, remap: Remap, values: Tensor) -> None:
        self._take(remap.flat // self.in_features, remap.flat % self.in_features)
        self._set_values(values)

    def multiply(self, x: Tensor) -> Tensor:
        refuse_tangents(x, self.values_, self.bias)
        flat = x.reshape(math.prod(x.shape[:-1]), self.in_features)
        if flat.shape[0] == 0 or self.nnz == 0:
            out = nothing(flat, self.values_, self.out_features, x.dtype)
        else:
            kind = wide(x, self.values_)
            with torch.autocast(x.device.type, enabled=False):
                out = self._product(flat.to(kind), self.values_.to(kind)).to(x.dtype)
        if self.bias is not None:
            out = out + self.bias.to(out.dtype)
        return out.reshape(*x.shape[:-1], self.out_features)

    def _product(self, x: Tensor, values: Tensor) -> Tensor:
        package = imported_torch_sparse()
        if self.engine == "spmm":
            return package.spmm(torch.stack([self.row, self.col]), values, self.out_features, self.in_features, x.t()).t()  # type: ignore[no-any-return]
        if self._tensor is None:
            self._tensor = package.SparseTensor(row=self.row, col=self.col, sparse_sizes=self.matrix_shape, is_sorted=True)
        return (self._tensor.set_value(values, layout="coo") @ x.t()).t()  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, engine={self.engine}"
