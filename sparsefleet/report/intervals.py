"""95 % intervals of a mean over seeds, and of a mean paired difference.

Below ten values the interval is Student's t: the percentile bootstrap under-covers there. From ten on it is the percentile bootstrap with
5,000 resamples, seeded from the values themselves, so that anyone recomputes the same bounds. A simulated-coverage test guards both.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

BOOTSTRAP_FROM = 10
_RESAMPLES = 5000

Interval = tuple[float, float]


def mean(values: Sequence[float]) -> float | None:
    """The arithmetic mean, or None of nothing."""
    return math.fsum(values) / len(values) if values else None


def deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation (n - 1), or None below two values."""
    if len(values) < 2:
        return None
    centre = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1))


def t_quantile(n: int) -> float:
    """The 97.5 % quantile of Student's t with ``n - 1`` degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, 0.975))


def t_interval(values: Sequence[float]) -> Interval | None:
    """mean ± t(n - 1) · sd / sqrt(n); None below two values."""
    spread = deviation(values)
    if spread is None:
        return None
    centre, half = math.fsum(values) / len(values), t_quantile(len(values)) * spread / math.sqrt(len(values))
    return centre - half, centre + half


def bootstrap_interval(values: Sequence[float]) -> Interval | None:
    """The percentile bootstrap of the mean; None below two values."""
    if len(values) < 2:
        return None
    import numpy as np

    text = ",".join(repr(float(v)) for v in values)
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little"))
    array = np.asarray(values, dtype=np.float64)
    means = array[rng.integers(0, array.size, (_RESAMPLES, array.size))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def interval(values: Sequence[float]) -> Interval | None:
    """The interval that this product prints for the mean of ``values``; None for equal values.

    A few equal values (three seeds with the same number of right answers, say) tell nothing about the spread, and an interval of no width
    would read as certainty.
    """
    if len(values) and max(values) - min(values) <= 1e-12 * max(1.0, abs(values[0])):
        return None
    return t_interval(values) if len(values) < BOOTSTRAP_FROM else bootstrap_interval(values)
