"""IndexedLinear: values beside a row-wise index and its transpose, multiplied by the kernels of ``sparsefleet.ops``."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from sparsefleet.connections import Connections
from sparsefleet.nn.linear import SparseLinear
from sparsefleet.nn.module import Remap
from sparsefleet.ops import Pattern, native, pattern_from, pattern_of, sparse_linear, split_sites


def _address(index: Tensor) -> int | None:
    """Where an index lies; None where nobody can tell: while it is traced, or where it has no memory."""
    traced = torch.compiler.is_compiling() or type(index) is not Tensor or index.is_meta
    return None if traced else index.data_ptr()


class IndexedLinear(SparseLinear):
    """The index is part of the state; the transposed index follows from it and is rebuilt whenever it is loaded or changes."""

    keeps_feature_major = True
    crow: Tensor
    col: Tensor
    t_ptr: Tensor
    t_row: Tensor
    t_pos: Tensor

    def _store(self, conn: Connections) -> None:
        fan_in = self._fan_in(conn.per_row())
        self._take(pattern_of(conn.row, conn.col, conn.shape, fan_in=fan_in))
        self.values_ = nn.Parameter(self._shaped(conn.weight.detach().clone()))

    def _fan_in(self, per_row: Tensor) -> int | None:
        """Connections of every output unit, where the storage has equally many.

        Args:
            per_row: ``(n_out,)`` int64.
        """
        return None

    def _shaped(self, values: Tensor) -> Tensor:
        """``(nnz,)`` values in the Parameter's shape."""
        return values

    def _take(self, pattern: Pattern) -> None:
        self._panels = pattern.panels
        self._indexed = _address(pattern.col)
        for name in ("crow", "col"):
            self.register_buffer(name, getattr(pattern, name), persistent=name in self.indices)
        for name in ("t_ptr", "t_row", "t_pos"):
            self.register_buffer(name, getattr(pattern, name), persistent=False)

    @property
    def pattern(self) -> Pattern:
        """Where the weight and its transpose have entries."""
        if _address(self.col) not in (self._indexed, None):  # other connections stand in for a while, as ``functional_call`` does it
            self._rebuild()
        return Pattern(
            shape=(self.out_features, self.in_features),
            fan_in=self._stored_fan_in(),
            crow=self.crow,
            col=self.col,
            panels=self._panels,
            t_ptr=self.t_ptr,
            t_row=self.t_row,
            t_pos=self.t_pos,
        )

    def _stored_fan_in(self) -> int | None:
        return None

    def multiply(self, x: Tensor) -> Tensor:
        return sparse_linear(x, self.values_.view(-1), self.pattern, self.bias)

    def sites(self) -> tuple[Tensor, Tensor]:
        return self.pattern.row(), self.col.view(-1).long()

    def flat_sites(self) -> Tensor:
        return self.pattern.flat()

    def set_topology(self, remap: Remap, values: Tensor) -> None:
        crow, col = split_sites(remap.flat, self.matrix_shape)
        fan_in = self._fan_in(torch.diff(crow))
        self._take(pattern_from(self.crow if fan_in is not None else crow, col, self.matrix_shape, fan_in=fan_in))
        self._set_values(self._shaped(values))

    def remap_slot(self, slot: Tensor, remap: Remap) -> Tensor:
        return self._shaped(super().remap_slot(slot, remap).view(-1))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._indexed = _address(self.col)
        if self._panels > 1 and (self.col.device.type != "cpu" or native.library() is None):  # pickled where panels were of use
            self._rebuild()

    def _rebuild(self) -> None:
        col = self.col.to(torch.int32).contiguous()
        crow = (
            torch.empty_like(self.crow, device=col.device) if self.crow.is_meta else self.crow.to(col.device)
        )  # of one fan-in it is empty
        crow = crow.to(torch.int32).contiguous()
        self._take(pattern_from(crow, col, self.matrix_shape, fan_in=self._stored_fan_in()))

    def _misfit(self, stored: dict[str, Tensor]) -> str:
        if stored["col"].dim() != 1:
            return f"columns of shape {tuple(stored['col'].shape)}, expected one dimension"
        col, row = stored["col"].reshape(-1).long(), self._rows_of(stored)
        if isinstance(row, str):
            return row
        if col.numel() != stored["values_"].numel():
            return f"{stored['values_'].numel()} values for {col.numel()} connections"
        outside = int(((col < 0) | (col >= self.in_features)).sum())
        if outside:
            return f"{outside} of {col.numel()} connections lie outside {self.out_features} x {self.in_features}"
        n_wrong = int((torch.diff(row.to(col.device) * self.in_features + col) <= 0).sum())
        return f"{n_wrong} of {col.numel()} connections are not in ascending order" if n_wrong else ""

    @abstractmethod
    def _rows_of(self, stored: dict[str, Tensor]) -> Tensor | str:
        """``(nnz,)`` int64 rows of a stored index, or what is wrong with it."""
