from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from benchmarks.trust.coverage import covered
from sparsefleet.report.intervals import (
    BOOTSTRAP_FROM,
    bootstrap_interval,
    deviation,
    interval,
    iqm,
    mean,
    probability_above,
    t_interval,
    t_quantile,
)


def test_quantiles_of_the_printed_table() -> None:
    assert [round(t_quantile(n), 3) for n in (2, 3, 5, 10)] == [12.706, 4.303, 2.776, 2.262]


def test_by_hand() -> None:
    values = [1.0, 2.0, 3.0, 4.0]  # mean 2.5, sd sqrt(5/3) = 1.290994, half = 3.182446 * 1.290994 / 2 = 2.054260
    assert mean(values) == 2.5
    assert deviation(values) == pytest.approx(math.sqrt(5 / 3))
    assert t_interval(values) == pytest.approx((0.445740, 4.554260), abs=1e-5)


def test_too_few_values() -> None:
    assert mean([]) is None
    assert interval([]) is interval([1.0]) is bootstrap_interval([1.0]) is None


def test_equal_values_give_no_interval_rather_than_certainty() -> None:
    assert interval([0.5, 0.5, 0.5]) is None
    assert interval([0.1 + 0.2, 0.3, 0.3]) is None
    assert interval([0.5] * 12) is None
    assert interval([0.5, 0.5, 0.51]) is not None


def test_bootstrap_repeats_itself() -> None:
    values = list(np.random.default_rng(0).normal(size=12))
    assert bootstrap_interval(values) == bootstrap_interval(values)


@pytest.mark.parametrize("n", [3, 5, 9])
def test_t_covers_95_percent(n: int) -> None:
    draws = np.random.default_rng(n).normal(0.3, 1.0, (1500, n))
    hits = sum(low <= 0.3 <= high for low, high in map(interval, draws))
    assert abs(hits / 1500 - 0.95) < 0.02


@pytest.mark.parametrize(("n", "kind"), [(10, "normal"), (20, "normal"), (10, "skewed"), (20, "skewed")])
def test_the_bootstrap_covers_95_percent_where_it_is_used(n: int, kind: str) -> None:
    """Within three standard errors of 600 tries; the percentile bootstrap, at 88 to 91 % with ten values, is not."""
    hits, tries = covered(n, kind, 600, seed=0)
    assert abs(hits / tries - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 600)


def test_the_interquartile_mean_is_scipys() -> None:
    draw = np.random.default_rng(0)
    for n in range(1, 24):
        values = list(draw.normal(size=n))
        assert iqm(values) == pytest.approx(float(stats.trim_mean(values, 0.25)), abs=1e-12)
    assert iqm([1.0, 2.0, 3.0, 4.0, 100.0]) == 3.0
    assert iqm([]) is None


def test_the_t_interval_and_its_probability_are_scipys() -> None:
    values = [0.01, -0.02, 0.03, 0.005, -0.001]
    test = stats.ttest_1samp(values, -0.01, alternative="greater")
    assert t_interval(values) == pytest.approx(tuple(stats.ttest_1samp(values, 0).confidence_interval(0.95)), abs=1e-12)
    assert probability_above(values, -0.01) == pytest.approx(1 - test.pvalue, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=2, max_size=15), st.floats(-0.5, 0.5))
def test_probability_and_interval_say_the_same(values: list[float], limit: float) -> None:
    found, p = interval(values), probability_above(values, limit)
    assert (found is None) == (p is None)
    if found is not None and p is not None and abs(found[0] - limit) > 1e-6:
        assert (found[0] > limit) == (p > 0.975) or (len(values) >= BOOTSTRAP_FROM and abs(p - 0.975) < 0.001)


def test_a_sample_of_almost_equal_values_falls_back_to_t() -> None:
    values = [0.5] * 11 + [0.51]
    assert bootstrap_interval(values) is None
    assert interval(values) == t_interval(values)


def test_a_skewed_sample_gets_a_leaning_interval() -> None:
    values = [0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.1, 0.6]
    low, high = bootstrap_interval(values)
    assert high - mean(values) > 2 * (mean(values) - low)


@pytest.mark.parametrize("n", [10, 11, 15, 16, 17, 25, 64, 100, 128, 129])
def test_the_fast_bootstrap_is_numpys_own_to_the_last_bit(n: int) -> None:
    import hashlib
    import math

    import numpy as np

    values = [float(v) for v in np.random.default_rng(n).normal(0.9, 10.0 ** -(n % 5), n)]
    seed = hashlib.sha256(",".join(map(repr, values)).encode()).digest()[:8]
    drawn = np.asarray(values)[np.random.default_rng(int.from_bytes(seed, "little")).integers(0, n, (5000, n))]
    pivots = (drawn.mean(axis=1) - np.mean(values)) / (drawn.std(axis=1, ddof=1) / math.sqrt(n))
    low, high = np.percentile(pivots, [2.5, 97.5])
    error = math.sqrt(math.fsum((v - math.fsum(values) / n) ** 2 for v in values) / (n - 1)) / math.sqrt(n)
    assert bootstrap_interval(values) == (math.fsum(values) / n - float(high) * error, math.fsum(values) / n - float(low) * error)
