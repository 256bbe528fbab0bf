"""TorchSparseLinear: COO through the torch-sparse package, the engine of the source package; kept as a peer."""

from __future__ import annotations

import sys
import warnings
from typing import Any, Literal

import torch
from torch import Tensor

from sparsefleet.errors import UserError
from sparsefleet.nn.coo import CooLinear


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


class TorchSparseLinear(CooLinear):
    """A ``CooLinear`` multiplied by torch-sparse.

    Args:
        engine: ``spmm`` gathers, multiplies and scatters with temporaries of nnz x batch; ``tensor`` is ``SparseTensor @``, CSR inside.

    Raises:
        UserError: torch-sparse is not installed.
    """

    execution = "torch_sparse"

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
        super().__init__(in_features, out_features, density, *positional, **options)

    def product(self, x: Tensor, values: Tensor) -> Tensor:
        package = imported_torch_sparse()
        if self.engine == "spmm":
            return package.spmm(torch.stack([self.row, self.col]), values, self.out_features, self.in_features, x.t()).t()  # type: ignore[no-any-return]
        if "tensor" not in self.made:
            self.made["tensor"] = package.SparseTensor(row=self.row, col=self.col, sparse_sizes=self.matrix_shape, is_sorted=True)
        return (self.made["tensor"].set_value(values, layout="coo") @ x.t()).t()  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, engine={self.engine}"
