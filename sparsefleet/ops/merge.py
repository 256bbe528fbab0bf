"""The bookkeeping of a topology change in single passes: two lists of sites become one, values follow, sites become rows and columns."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsefleet.ops import native

_INT32_MAX = 2**31 - 1


def merge_sites(flat: Tensor, keep: Tensor, fresh: Tensor) -> tuple[Tensor, Tensor, int]:
    """``(n,)`` int64 ascending sites of ``flat[keep]`` and ``fresh``; ``(n,)`` integer, where each stood in ``flat``, -1 for a fresh one; and
    how many fresh ones were kept already, and so stand twice.

    Args:
        flat: ``(nnz,)`` int64 ascending.
        keep: ``(nnz,)`` bool.
        fresh: ``(k,)`` int64 ascending.
    """
    if flat.device.type == "cpu" and native.library() is not None and flat.numel() + fresh.numel() <= _INT32_MAX:
        return native.merge(flat.contiguous(), keep.contiguous(), fresh.contiguous())
    positions = torch.nonzero(keep).flatten()
    sites = torch.cat([flat[positions], fresh])
    sites, order = torch.sort(sites, stable=True)
    return sites, torch.cat([positions, torch.full_like(fresh, -1)])[order], int(torch.count_nonzero(sites[1:] == sites[:-1]))


def positions(flat: Tensor, sites: Tensor) -> Tensor:
    """``(k,)`` int64 where each of ``sites`` stands in ``flat``, -1 for those that do not.

    Args:
        flat: ``(nnz,)`` int64 ascending, not empty.
        sites: ``(k,)`` int64 ascending.
    """
    if flat.device.type == "cpu" and native.library() is not None:
        return native.find(flat.contiguous(), sites.contiguous())
    at = torch.searchsorted(flat, sites).clamp_(max=flat.numel() - 1)
    return at.masked_fill_(flat[at] != sites, -1)


def taken(values: Tensor, source: Tensor) -> Tensor:
    """``(n,)`` ``values`` at ``source``, zeros where it is -1.

    Args:
        values: ``(nnz,)``, not empty.
        source: ``(n,)`` int32 or int64.
    """
    if values.device.type == "cpu" and values.element_size() == 4 and source.dtype == torch.int32 and native.library() is not None:
        return native.take(values.contiguous(), source.contiguous())
    return values.index_select(0, source.clamp(min=0)).masked_fill_(source < 0, 0)


def split_sites(flat: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """``(n_out + 1,)`` int32 row pointer and ``(nnz,)`` int32 columns.

    Args:
        flat: ``(nnz,)`` int64 ascending sites ``row * n_in + col``.
        shape: ``(n_out, n_in)``.
    """
    if flat.device.type == "cpu" and native.library() is not None:
        return native.split(flat.contiguous(), shape)
    begins = torch.arange(shape[0] + 1, device=flat.device).mul_(shape[1])
    crow = torch.searchsorted(flat, begins)
    col = torch.repeat_interleave(begins[:-1].neg(), torch.diff(crow), output_size=flat.numel()).add_(flat)
    return crow.int(), col.int()
