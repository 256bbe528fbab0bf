"""The bookkeeping of a topology change in single passes: two lists of sites become one, values follow, sites become rows and columns."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsefleet.ops import native


def merge_sites(flat: Tensor, keep: Tensor, fresh: Tensor) -> tuple[Tensor, Tensor]:
    """``(n,)`` int64 ascending sites of ``flat[keep]`` and ``fresh``, and ``(n,)`` int64 where each stood in ``flat``, -1 for a fresh one.

    Args:
        flat: ``(nnz,)`` int64 ascending.
        keep: ``(nnz,)`` bool.
        fresh: ``(k,)`` int64 ascending, none of them kept.
    """
    if flat.device.type == "cpu" and native.library() is not None:
        return native.merge(flat.contiguous(), keep.contiguous(), fresh.contiguous(), int(torch.count_nonzero(keep)))
    positions = torch.nonzero(keep).flatten()
    sites = torch.cat([flat[positions], fresh])
    sites, order = torch.sort(sites)
    return sites, torch.cat([positions, torch.full_like(fresh, -1)])[order]


def taken(values: Tensor, source: Tensor) -> Tensor:
    """``(n,)`` ``values`` at ``source``, zeros where it is -1.

    Args:
        values: ``(nnz,)``, not empty.
        source: ``(n,)`` int64.
    """
    if values.device.type == "cpu" and values.dtype == torch.float32 and native.library() is not None:
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
