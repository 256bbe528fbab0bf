"""Where a sparse matrix has entries: by rows, for the forward pass, and by columns, for the backward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsefleet.errors import UserError
from sparsefleet.ops import native

_INT32_MAX = 2**31 - 1
_PANEL_BYTES = 3 << 20
_PER_COLUMN = 12


@dataclass(frozen=True, eq=False)
class Pattern:
    """The entries of an ``(n_out, n_in)`` matrix; every index is int32, so it holds up to 2³¹ - 1 of them.

    Attributes:
        shape: ``(n_out, n_in)``.
        fan_in: entries of every row where that is one number, else None.
        crow: ``(n_out + 1,)`` where each row begins; ``(0,)`` for a constant fan-in.
        col: ``(nnz,)`` input units, ascending in each row.
        panels: into how many panels of rows the transposed index is cut, so that what it jumps to stays in a near cache; 1 on a GPU.
        t_ptr: ``(panels * n_in + 1,)`` where column j of panel p begins, at ``p * n_in + j``.
        t_row: ``(nnz,)`` output units, by panel, column and row.
        t_pos: ``(nnz,)`` the entry's position among the values.
    """

    shape: tuple[int, int]
    fan_in: int | None
    crow: Tensor
    col: Tensor
    panels: int
    t_ptr: Tensor
    t_row: Tensor
    t_pos: Tensor

    @property
    def nnz(self) -> int:
        """Number of entries."""
        return self.col.numel()

    def row(self) -> Tensor:
        """``(nnz,)`` int64 output unit of every entry."""
        if self.fan_in is not None:
            return torch.arange(self.shape[0], device=self.col.device).repeat_interleave(self.fan_in, output_size=self.nnz)
        return torch.arange(self.shape[0], device=self.col.device).repeat_interleave(self.crow.diff(), output_size=self.nnz)

    def flat(self) -> Tensor:
        """``(nnz,)`` int64 sites ``row * n_in + col``, ascending."""
        if self.col.device.type == "cpu" and native.library() is not None:
            return native.sites(self)
        return self.row().mul_(self.shape[1]).add_(self.col)

    def to(self, device: torch.device | str) -> Pattern:
        """The same entries on another device; the transposed index is made for that device."""
        col = self.col.to(device)
        return self if col is self.col else pattern_from(self.crow.to(device), col, self.shape, fan_in=self.fan_in)


def pattern_of(row: Tensor, col: Tensor, shape: tuple[int, int], *, fan_in: int | None = None) -> Pattern:
    """The pattern of entries given in ascending order of (row, col).

    Args:
        row: ``(nnz,)`` int64.
        col: ``(nnz,)`` int64.
        fan_in: entries of every row, where the caller knows that it is one number.

    Raises:
        UserError: more entries than an int32 can number.
    """
    if max(*shape, col.numel()) > _INT32_MAX:
        raise UserError(f"{col.numel()} connections of {shape[0]} x {shape[1]} units: a sparse layer holds at most {_INT32_MAX} of each")
    if fan_in is None:
        ends = torch.arange(shape[0] + 1, dtype=torch.int32, device=row.device)
        crow = torch.searchsorted(row.to(torch.int32), ends, out_int32=True)
    else:
        crow = torch.empty(0, dtype=torch.int32, device=row.device)
    return pattern_from(crow, col.to(torch.int32), shape, fan_in=fan_in)


def pattern_from(crow: Tensor, col: Tensor, shape: tuple[int, int], *, fan_in: int | None = None) -> Pattern:
    """The pattern of stored rows, with a new transposed index (a counting sort, O(nnz)).

    Args:
        crow: ``(n_out + 1,)`` int32, or ``(0,)`` with a ``fan_in``.
        col: ``(nnz,)`` int32, ascending in each row.
    """
    by_kernels = col.device.type == "cpu" and native.library() is not None
    panels = n_panels(shape, col.numel()) if by_kernels else 1
    t_ptr = torch.empty(panels * shape[1] + 1, dtype=torch.int32, device=col.device)
    pattern = Pattern(shape, fan_in, crow, col, panels, t_ptr, torch.empty_like(col), torch.empty_like(col))
    if by_kernels:
        native.transpose_index(pattern)
    else:
        _transpose_by_sorting(pattern)
    return pattern


def n_panels(shape: tuple[int, int], nnz: int) -> int:
    """Panels of the transposed index: about 3 MiB of values each, and a dozen entries in each column of a panel.

    Wide panels spill out of the second cache; narrow ones load and store every column's sums more often than they add to them.
    """
    return max(1, min(-(-4 * nnz // _PANEL_BYTES), nnz // max(1, _PER_COLUMN * shape[1]), shape[0], 64))


def panel_rows(pattern: Pattern) -> int:
    """Rows of each panel, the last one excepted."""
    return -(-pattern.shape[0] // pattern.panels)


def _transpose_by_sorting(pattern: Pattern) -> None:
    n_in, row = pattern.shape[1], pattern.row()
    key = row.div(panel_rows(pattern), rounding_mode="floor").mul_(n_in).add_(pattern.col) if pattern.panels > 1 else pattern.col.long()
    key, order = torch.sort(key, stable=True)
    pattern.t_ptr.copy_(torch.searchsorted(key, torch.arange(pattern.t_ptr.numel(), device=key.device), out_int32=True))
    pattern.t_row.copy_(row[order])
    pattern.t_pos.copy_(order)
