"""How many and which units stay of a network: whole neurons and filters, an exact choice for a share of weights or of units.

Units are put in one order, best first, and as long a prefix of it stays as the budget allows; then single units, at most one a group, bring the
total nearer to it. In every group the k best by score stay, ties by position. With ``uniform`` the next unit is always that of the group that is
furthest behind its share; with ``global`` it is the one with the next score of all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sparsefleet.errors import PluginError
from sparsefleet.sparsity.distribute import total_nnz
from sparsefleet.sparsity.select import keep_best
from sparsefleet.sparsity.vocabulary import Distribution


class Matrix(NamedTuple):
    """A weight whose rows are the units of one group and whose columns belong to the units of another.

    Attributes:
        rows: index of the group of its rows.
        cols: index of the group of its columns.
        run: columns per unit: elements of a kernel, times places where a flattened map is read.
    """

    rows: int
    cols: int
    run: int


def unit_scores(score: Tensor, row: Tensor, n_units: int, p: float = 1.0) -> Tensor:
    """``(n_units,)`` float64: the sum of each unit's scores for p = 1 (arXiv 1608.08710, section 3.1, with magnitudes), else their L_p norm.

    Args:
        score: ``(nnz,)`` importance of connections.
        row: ``(nnz,)`` int64 unit of each.
    """
    score = score.detach().double()
    if bool(torch.isnan(score).any()):
        raise PluginError(f"{int(torch.isnan(score).sum())} of {score.numel()} scores are NaN")
    total = torch.zeros(n_units, dtype=torch.float64, device=score.device)
    if p == 1:
        return total.index_add_(0, row, score)
    return total.index_add_(0, row, score.abs().pow(p)).pow(1 / p)


def choose_units(
    scores: Sequence[Tensor],
    free: Sequence[bool],
    matrices: Sequence[Matrix],
    density: float,
    *,
    counts: Literal["weights", "units"] = "weights",
    distribution: Distribution = "uniform",
) -> list[Tensor]:
    """``(n,)`` bool for each group: the units that stay; at least one of each group, and all of one that is not free.

    Args:
        scores: ``(n,)`` float64 of each group, -inf where a unit has gone before.
        free: whether units of the group may go.
        matrices: the weights that ``density`` is about.
        distribution: ``uniform`` or ``global``.
        density: kept share of all their sites, or of the units of the free groups.
    """
    sizes = [score.numel() for score in scores]
    alive = [int((score > -math.inf).sum()) if free[i] else sizes[i] for i, score in enumerate(scores)]
    order = _order(scores, free, alive, distribution)
    first = torch.tensor([1 if may else n for may, n in zip(free, sizes, strict=True)])

    def after(n: int) -> list[int]:
        return (first + torch.bincount(order[:n], minlength=len(sizes))).tolist()

    def total(kept: Sequence[int]) -> int:
        if counts == "units":
            return sum(kept[i] for i in range(len(sizes)) if free[i])
        return sum(kept[matrix.rows] * kept[matrix.cols] * matrix.run for matrix in matrices)

    if counts == "units" and distribution == "uniform":
        chosen = [min(alive[i], max(1, total_nnz(n, density))) if free[i] else n for i, n in enumerate(sizes)]
    else:
        wanted = total_nnz(total(sizes), density)
        chosen = _nearer(after(_last_within(lambda n: total(after(n)), order.numel(), wanted)), alive, total, wanted)
    return [
        keep_best(score, n) if may else torch.ones(score.numel(), dtype=torch.bool, device=score.device)
        for score, n, may in zip(scores, chosen, free, strict=True)
    ]


def _order(scores: Sequence[Tensor], free: Sequence[bool], alive: Sequence[int], distribution: str) -> Tensor:
    """``(n,)`` int64: the group of each unit that may still stay, the next one first; the first unit of a group is not in it."""
    rank, group = [torch.empty(0, dtype=torch.float64)], [torch.empty(0, dtype=torch.int64)]
    for i, score in enumerate(scores):
        if not free[i] or alive[i] < 2:
            continue
        if distribution == "uniform":
            rank.append((torch.arange(1, alive[i], dtype=torch.float64) + 0.5) / score.numel())
        else:
            rank.append(-torch.sort(score.cpu(), descending=True).values[1 : alive[i]])
        group.append(torch.full((alive[i] - 1,), i))
    return torch.cat(group)[torch.argsort(torch.cat(rank), stable=True)]


def _last_within(total: Callable[[int], int], n: int, wanted: int) -> int:
    """The largest m in [0, n] whose ``total(m)``, which ascends, is at most ``wanted``; 0 if there is none."""
    low, high = 0, n
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if total(middle) <= wanted else (low, middle - 1)
    return low


def _nearer(kept: list[int], alive: Sequence[int], total: Callable[[Sequence[int]], int], wanted: int) -> list[int]:
    """One more unit of the group with which the total comes nearest, then of another one, as long as it comes nearer."""
    open_ = [i for i, n in enumerate(kept) if n < alive[i]]
    while open_:
        tries = {i: abs(total([n + (j == i) for j, n in enumerate(kept)]) - wanted) for i in open_}
        best = min(tries, key=lambda i: tries[i])
        if tries[best] >= abs(total(kept) - wanted):
            break
        kept = [n + (j == best) for j, n in enumerate(kept)]
        open_.remove(best)
    return kept
