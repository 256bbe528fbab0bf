from __future__ import annotations

import math

import numpy as np
import pytest

from sparsefleet.report.intervals import bootstrap_interval, deviation, interval, mean, t_interval, t_quantile


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


def test_bootstrap_covers_close_to_95_percent_where_it_is_used() -> None:
    draws = np.random.default_rng(1).normal(0.3, 1.0, (400, 16))
    hits = sum(low <= 0.3 <= high for low, high in map(interval, draws))
    assert 0.89 < hits / 400 < 0.98
    few = np.random.default_rng(2).normal(0.3, 1.0, (400, 3))
    assert sum(low <= 0.3 <= high for low, high in map(bootstrap_interval, few)) / 400 < 0.85  # why it is not used below ten
