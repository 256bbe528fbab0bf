"""What is drawn from a key: the order of the sides, and the resamples of the bootstrap. Imports no torch.

Only the raw stream of PCG64 is used, which numpy keeps stable from version to version, unlike its distributions.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 5000
MIN_KEPT_FOR_INTERVAL = 6
"""Below this a 95 % interval of a median does not exist: 2 * 0.5**5 is more than 5 %."""

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Charge:
    """What work at some calls only adds to every call, in one process.

    Attributes:
        share: of the calls that have the work.
        extra: its cost over that of a call without it, one per undisturbed pair of blocks.
    """

    share: float
    extra: Sequence[float]

    def log(self, extra: float) -> float:
        """By how much a log-ratio falls if the work costs ``extra`` calls; noise cannot make it a gain."""
        return math.log1p(self.share * max(0.0, extra))


def draw_order(key: str, rounds: int, sides: str = "DSE") -> list[str]:
    """Per round, an order of the sides: every so many rounds as there are orders hold all of them, shuffled, so that no side owns a place."""
    orders = ["".join(order) for order in itertools.permutations(sides)]
    stream = _stream(f"{key}|order")
    drawn: list[str] = []
    while len(drawn) < rounds:
        ranks = stream.random_raw(len(orders)).tolist()
        drawn += [order for _, order in sorted(zip(ranks, orders, strict=True))]
    return drawn[:rounds]


def bootstrap(groups: Sequence[Sequence[float]], key: str, charges: Sequence[Charge | None] = ()) -> tuple[float, float] | None:
    """95 % percentile interval of exp(mean over the groups of their medians), or None for too few values.

    Each of 5000 resamples draws as many groups as there are, with replacement, and of each drawn group as many values as it has, and as many
    of what its charge rests on.

    Args:
        charges: of each group, what is taken off its median; none by default.
    """
    charged = dict(enumerate(charges))
    if min(len(values) for values in [*groups, *(one.extra for one in charges if one)]) < MIN_KEPT_FOR_INTERVAL:
        return None
    stream, n_groups = _stream(key), len(groups)
    chosen = (
        (stream.random_raw(RESAMPLES * n_groups) % np.uint64(n_groups)).astype(np.int64).reshape(RESAMPLES, n_groups)
        if n_groups > 1
        else np.zeros((RESAMPLES, 1), np.int64)
    )
    medians = np.empty((RESAMPLES, n_groups))
    for place in range(n_groups):
        drawn = np.stack([_resampled(logs, charged.get(i), stream) for i, logs in enumerate(groups)])  # (groups, RESAMPLES)
        medians[:, place] = drawn[chosen[:, place], np.arange(RESAMPLES)]
    means = np.sort(medians.sum(axis=1) / n_groups).tolist()
    return math.exp(quantile(means, 0.025)), math.exp(quantile(means, 0.975))


def _resampled(logs: Sequence[float], charge: Charge | None, stream: np.random.PCG64) -> Array:
    medians = _medians(logs, stream)
    if charge is not None:
        extra: list[float] = _medians(charge.extra, stream).tolist()
        medians -= np.array([charge.log(value) for value in extra])  # numpy's own logarithm has other digits on other processors
    return medians


def _medians(values: Sequence[float], stream: np.random.PCG64) -> Array:
    """``(RESAMPLES,)``: medians of resamples of ``values``."""
    n, ordered = len(values), np.sort(np.asarray(values, dtype=np.float64))
    ranks = (stream.random_raw(RESAMPLES * n) % np.uint64(n)).astype(np.uint16).reshape(RESAMPLES, n)
    ranks.sort(axis=1)  # sorting ranks is sorting values, and small integers sort fast
    return (ordered[ranks[:, (n - 1) // 2]] + ordered[ranks[:, n // 2]]) / 2  # type: ignore[no-any-return]


def quantile(ordered: Sequence[float], share: float) -> float:
    """The ``share`` quantile of ascending values, linear between neighbours."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _stream(key: str) -> np.random.PCG64:
    return np.random.PCG64(int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little"))
