"""Patterns: the shapes in which connections may leave, combined with any score."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from sparsefleet.connections import Connections
from sparsefleet.errors import PluginError
from sparsefleet.sparsity.select import keep_best, keep_best_per_row, refuse_nan
from sparsefleet.sparsity.vocabulary import Block, Channel, Neuron, NOfM, Pattern, Row


def keep_by_pattern(score: Tensor, conn: Connections, n_keep: int, pattern: Pattern, kernel: int = 1) -> Tensor:
    """``(nnz,)`` bool: what stays of ``conn`` when about ``n_keep`` should, in whole units of the pattern.

    Unstructured keeps exactly ``n_keep``. Rows, channels and blocks keep the number of whole units nearest to it (at least one), so the
    realised density can differ from the asked one; both are recorded. ``n:m`` keeps n of every m consecutive inputs.

    Args:
        score: ``(nnz,)`` importance.
        kernel: elements of the convolution kernel (``kh * kw``); columns are ``channel * kernel + offset``.
    """
    if isinstance(pattern, Row):
        return _keep_units(score, conn.row, conn.n_out, n_keep)
    if isinstance(pattern, Channel):
        return _keep_units(score, conn.col // kernel, conn.n_in // kernel, n_keep)
    if isinstance(pattern, Block):
        wide = -(-conn.n_in // pattern.cols)
        tile = (conn.row // pattern.rows) * wide + conn.col // pattern.cols
        return _keep_tiles(score, tile, n_keep, pattern.score)
    if isinstance(pattern, NOfM):
        return _keep_n_of_m(score, conn, pattern, n_keep, kernel)
    if isinstance(pattern, Neuron):
        raise PluginError("pattern neuron removes units of a whole network, and this is one layer", fix="sparsefleet.nn.unit_pruning")
    return keep_best(score, n_keep)


def _keep_units(score: Tensor, unit: Tensor, n_units: int, n_keep: int) -> Tensor:
    """Keeps whole rows or channels by the sum of their scores, best first, up to the number of connections nearest to ``n_keep``.

    A unit counts with the connections that it has: in a layer that was sparse before, fewer than its sites. One without any is never chosen.
    """
    refuse_nan(score)
    total = torch.zeros(n_units, dtype=torch.float64, device=score.device).index_add_(0, unit, score.detach().double())
    size = torch.bincount(unit, minlength=n_units)
    total[size == 0] = -math.inf
    reached = torch.cumsum(size[torch.argsort(total, descending=True, stable=True)], 0)
    away = (reached - n_keep).abs()
    n_chosen = min(int(torch.count_nonzero(size)), int(torch.nonzero(away == away.min())[-1]) + 1)  # of two as near the larger number
    return keep_best(total, n_chosen)[unit]


def _keep_tiles(score: Tensor, tile: Tensor, n_keep: int, by: Literal["mean", "max"]) -> Tensor:
    """Keeps tiles by the mean or the highest score of what is there, best first, up to the number of connections nearest to ``n_keep``."""
    refuse_nan(score)
    present, index, size = torch.unique(tile, return_inverse=True, return_counts=True)
    own = torch.zeros(present.numel(), dtype=torch.float64, device=score.device)
    if by == "max":
        own.scatter_reduce_(0, index, score.detach().double(), "amax", include_self=False)
    else:
        own.index_add_(0, index, score.detach().double()).div_(size)
    order = torch.argsort(own, descending=True, stable=True)
    reached = torch.cumsum(size[order], 0)
    n_chosen = max(1, int(torch.argmin((reached - n_keep).abs())) + 1) if n_keep else 1
    chosen = torch.zeros(present.numel(), dtype=torch.bool, device=score.device)
    chosen[order[:n_chosen]] = True
    return chosen[index]


def _keep_n_of_m(score: Tensor, conn: Connections, pattern: NOfM, n_keep: int, kernel: int) -> Tensor:
    """While a schedule is above n/m, more than n of each m stay; at the target exactly n (fewer in a ragged or thinner group).

    A budget is its density rounded by less than one connection, so one connection less is what decides.
    """
    n_now = max(pattern.n, math.ceil(pattern.m * (n_keep - 1) / conn.n_sites))
    channel, offset = conn.col // kernel, conn.col % kernel
    n_groups = -(-(conn.n_in // kernel) // pattern.m)
    group = (conn.row * n_groups + channel // pattern.m) * kernel + offset
    present, index = torch.unique(group, return_inverse=True)
    return keep_best_per_row(score, index, torch.full_like(present, n_now))
