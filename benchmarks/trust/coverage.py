"""How often the 95 % intervals of accuracy cover the truth: simulated, with fixed seeds, for normal and for skewed differences.

The intervals are those of ``sparsefleet.report.intervals``: Student's t below ten seeds, the studentised bootstrap from ten on. The skewed draws are
gamma distributed with a skewness of 1, as differences look when some seeds end in a bad basin; nothing covers 95 % of them with three or five
values, so the target there is what t can honestly give. The percentile and BCa bootstrap stand beside for comparison: why they are not used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Figure, Run
from sparsefleet.report.intervals import interval

Draws = NDArray[np.float64]
Method = Callable[[Sequence[float]], "tuple[float, float] | None"]
KINDS = ("normal", "skewed", "exponential")
"""Skewness 0, 1 and 2; the last is only told."""
SIZES = (3, 5, 10, 20)
_TRUTH = {"normal": 0.3, "skewed": 4.0, "exponential": 1.0}
_SHAPE = {"skewed": 4.0, "exponential": 1.0}
_RESAMPLES = 1000


def draws(kind: str, n: int, tries: int, seed: int) -> Draws:
    """``(tries, n)`` independent values."""
    rng = np.random.default_rng([seed, n, KINDS.index(kind)])
    return rng.normal(_TRUTH["normal"], 1.0, (tries, n)) if kind == "normal" else rng.gamma(_SHAPE[kind], 1.0, (tries, n))


def covered(n: int, kind: str, tries: int, seed: int, method: Method = interval) -> tuple[int, int]:
    """How many of the intervals of ``tries`` samples of ``n`` values cover the true mean, and how many there are."""
    found = [method([float(v) for v in sample]) for sample in draws(kind, n, tries, seed)]
    bounds = [one for one in found if one is not None]
    return sum(low <= _TRUTH[kind] <= high for low, high in bounds), len(bounds)


def by_scipy(name: str) -> Method:
    """A bootstrap of ``scipy.stats``: ``percentile`` or ``BCa``."""
    from scipy.stats import bootstrap

    def method(values: Sequence[float]) -> tuple[float, float]:
        found = bootstrap((values,), np.mean, n_resamples=_RESAMPLES, method=name, rng=np.random.default_rng(0)).confidence_interval
        return float(found.low), float(found.high)

    return method


def figures(run: Run) -> list[Figure]:
    """Coverage at 3, 5, 10 and 20 seeds; and what the bootstraps left out would give at 10."""
    tries = run.pick(4000, 400)
    found, raw = [], {}
    for kind in KINDS:
        for n in SIZES:
            hits, of = covered(n, kind, tries, seed=1)
            raw[f"{kind} {n}"] = [hits, of]
            low, high = _limits(kind, n, of) if kind != "exponential" else (None, None)
            note = "Student's t" if n < 10 else "studentised bootstrap"
            found.append(
                Figure(f"accuracy interval, {kind}, n={n}", "%", 100 * hits / of, _wilson(hits, of), low, most=high, note=run.note(note))
            )
    few = run.pick(1000, 100)
    for name in ("percentile", "BCa"):
        for kind in ("normal", "skewed"):
            hits, of = covered(10, kind, few, seed=1, method=by_scipy(name))
            raw[f"{name} {kind} 10"] = [hits, of]
            found.append(Figure(f"not used: {name} bootstrap, {kind}, n=10", "%", 100 * hits / of, _wilson(hits, of), note=run.note()))
    run.keep(raw)
    return found


def _limits(kind: str, n: int, tries: int) -> tuple[float, float]:
    """95 %, less what the method can honestly not give, and three standard errors of the simulation around it."""
    noise = 300 * math.sqrt(0.95 * 0.05 / tries)
    honest = 2.5 if kind == "skewed" and n < 10 else 0.5
    return round(95 - honest - noise, 1), round(95 + 0.5 + noise, 1)


def _wilson(hits: int, of: int) -> tuple[float, float]:
    """95 % interval of the share, in percent."""
    from scipy.stats import binomtest

    found = binomtest(hits, of).proportion_ci(0.95, method="wilson")
    return 100 * float(found.low), 100 * float(found.high)
