"""Two ascending lists of sites become one: the bookkeeping of a topology change, in one pass."""

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
