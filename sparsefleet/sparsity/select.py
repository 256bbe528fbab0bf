"""Which connections stay: exact counts, ties by position, never a threshold."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsefleet.errors import PluginError

_SAMPLED_ABOVE, _SAMPLE = 1 << 18, 1 << 14


def keep_best(score: Tensor, n_keep: int) -> Tensor:
    """``(n,)`` bool with exactly ``n_keep`` True at the highest scores; of equal scores the earlier positions stay.

    Linear in n and without the 2**24-element limits of ``torch.quantile`` and ``torch.multinomial``.

    Args:
        score: ``(n,)`` float, no NaN.

    Raises:
        PluginError: NaN among the scores, or n_keep outside [0, n].
    """
    n = score.numel()
    if not 0 <= n_keep <= n:
        raise PluginError(f"cannot keep {n_keep} of {n} connections")
    if n_keep in (0, n):
        return torch.full((n,), n_keep == n, dtype=torch.bool, device=score.device)
    score = score.detach().reshape(-1)
    refuse_nan(score)
    last = _kth_smallest(score, n - n_keep + 1)  # the n_keep-th largest
    keep = score >= last
    if int(torch.count_nonzero(keep)) == n_keep:  # nobody who ties has to go
        return keep
    keep = score > last
    n_tied = n_keep - int(torch.count_nonzero(keep))
    keep[torch.nonzero(score == last).flatten()[:n_tied]] = True
    return keep


def keep_best_per_row(score: Tensor, row: Tensor, n_keep: Tensor) -> Tensor:
    """``(n,)`` bool: in every row the ``n_keep[row]`` highest scores, ties by position.

    Args:
        score: ``(n,)`` float, no NaN.
        row: ``(n,)`` int64, any order.
        n_keep: ``(n_rows,)`` int64.

    Raises:
        PluginError: NaN among the scores.
    """
    refuse_nan(score)
    order = torch.argsort(score.detach(), descending=True, stable=True)
    order = order[torch.argsort(row[order], stable=True)]  # rows together, best first inside
    sorted_row = row[order]
    count = torch.bincount(row, minlength=n_keep.numel())
    first = torch.cumsum(count, 0).sub_(count)
    rank = torch.arange(row.numel(), device=row.device) - first[sorted_row]
    keep = torch.zeros(row.numel(), dtype=torch.bool, device=row.device)
    keep[order] = rank < n_keep[sorted_row]
    return keep


def refuse_nan(score: Tensor) -> None:
    """Raises ``PluginError`` where scores are NaN, which sorts as the highest."""
    if bool(torch.isnan(score).any()):
        raise PluginError(f"{int(torch.isnan(score).sum())} of {score.numel()} scores are NaN")


def _kth_smallest(values: Tensor, k: int) -> Tensor:
    """The k-th smallest of ``(n,)`` values without NaN, from 1 on: exact; a sample says between which values it lies."""
    n = values.numel()
    if n > _SAMPLED_ABOVE and values.device.type == "cpu":
        sample = torch.sort(values[:: n // _SAMPLE]).values
        at, margin = k * sample.numel() // n, sample.numel() // 100
        low, high = sample[max(0, at - margin)], sample[min(sample.numel() - 1, at + margin)]
        n_below = int(torch.count_nonzero(values < low))
        if bool(low == high):  # many are equal
            return low if n_below < k <= int(torch.count_nonzero(values <= low)) else torch.kthvalue(values, k).values
        inside = values[(values >= low).logical_and_(values <= high)]
        if n_below < k <= n_below + inside.numel():
            return torch.kthvalue(inside, k - n_below).values
    return torch.kthvalue(values, k).values


def share_of(n: int, share: float) -> int:
    """The largest m with ``m / n <= share``."""
    m = min(n, int(share * n) + 1)
    while m and m / n > share:
        m -= 1
    return m


def lowest_within(score: Tensor, group: Tensor, share: float) -> Tensor:
    """``(n,)`` bool: the lowest ``share`` of each of two groups, ``share_of`` its size; of equal scores the later positions, as ``keep_best`` has it.

    The same as ``rank_within(score, group) <= share``, without a sort.

    Args:
        score: ``(n,)`` float, no NaN.
        group: ``(n,)`` bool.
    """
    low = torch.zeros_like(group)
    for part in (group, ~group):
        inside = score.detach()[part]
        k = share_of(inside.numel(), share)
        if not k:
            continue
        limit = _kth_smallest(inside, k)
        below = (score <= limit).logical_and_(part)
        if int(torch.count_nonzero(below)) == k:  # all who tie go
            low |= below
            continue
        below = (score < limit).logical_and_(part)
        tied = torch.nonzero((score == limit).logical_and_(part)).flatten()
        low |= below
        low[tied[tied.numel() - (k - int(torch.count_nonzero(below))) :]] = True
    return low


def rank_within(score: Tensor, group: Tensor) -> Tensor:
    """``(n,)`` float64 in (0, 1]: the share of its group that a score is not below, so the lowest of m has 1/m and the highest 1.

    The lowest share z of every group is ``rank_within(score, group) <= z``. Of equal scores the later position ranks lower, as in
    ``keep_best``.

    Args:
        score: ``(n,)`` float.
        group: ``(n,)`` int64 or bool.
    """
    index = group.long()
    order = torch.argsort(score.detach(), stable=True, descending=True)
    order = order[torch.argsort(index[order], stable=True)]  # groups together, highest first inside
    size = torch.bincount(index)
    last = torch.cumsum(size, 0)[index[order]]
    share = (last - torch.arange(score.numel(), device=score.device)) / size[index[order]].double()
    return torch.empty_like(share).scatter_(0, order, share)
