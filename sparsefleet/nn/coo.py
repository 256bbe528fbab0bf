"""CooLinear: values beside their rows and columns; a storage of one's own is one method, ``product``."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from sparsefleet.connections import Connections
from sparsefleet.nn.linear import SparseLinear
from sparsefleet.nn.module import Remap
from sparsefleet.ops.operands import nothing, refuse_tangents, wide


class CooLinear(SparseLinear):
    """A ``SparseLinear`` with ``(nnz,)`` values, each with its row and its column, in ascending order of (row, column).

    Bias, leading dimensions, autocast, half precision, empty batches, rewiring, optimizer slots and state dicts are its business; a subclass
    says ``execution`` and defines ``product``.

    Attributes:
        row: ``(nnz,)`` int64 output units.
        col: ``(nnz,)`` int64 input units.
        made: what a subclass made of rows and columns and keeps, by a name of its choice; emptied whenever they change or move, never
            copied, pickled or stored.
    """

    execution = "sparse_coo"
    indices = ("row", "col")
    row: Tensor
    col: Tensor

    def __init__(self, *positional: Any, **options: Any) -> None:
        self.made: dict[str, Any] = {}
        super().__init__(*positional, **options)

    @abstractmethod
    def product(self, x: Tensor, values: Tensor) -> Tensor:
        """``(batch, n_out)``: ``x Wᵀ``, through which gradients flow to both; neither may cost ``n_out * n_in``. Any strides, e.g. a transposed
        view of ``(n_out, batch)``.

        Args:
            x: ``(batch, n_in)``, float32 or float64, at least one row.
            values: ``(nnz,)`` of the same type, at least one.
        """

    def _store(self, conn: Connections) -> None:
        self._take(conn.row, conn.col)
        self.values_ = nn.Parameter(conn.weight.detach().clone())

    def _take(self, row: Tensor, col: Tensor) -> None:
        self.register_buffer("row", row)
        self.register_buffer("col", col)
        self._rebuild()

    def _rebuild(self) -> None:
        self.made = {}  # made again at the first product

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
        return {**super().__getstate__(), "made": {}}

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
                out = self.product(flat.to(kind), self.values_.to(kind)).to(x.dtype)
        if self.bias is not None:
            out = out + self.bias.to(out.dtype)
        return out.reshape(*x.shape[:-1], self.out_features)
