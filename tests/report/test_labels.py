"""Parameters in a few characters."""

import pytest

from sparsefleet.report.labels import called, labels, short


@pytest.mark.parametrize(
    ("value", "told"),
    [([512, 256], "512×256"), ([["fc1", 4], ["fc2", 4]], "fc1:4,fc2:4"), ([], "–"), (None, "–"), (0.1, "0.1"), (False, "false")],
)
def test_a_value_is_told_shortly(value, told):
    assert short(value) == told


def test_parameters_that_hold_nothing_are_left_out():
    assert called("radix", {"radices": [], "base": None}) == "radix"
    assert called("radix", {"radices": [["fc1", 4]], "base": 0}) == "radix(radices=fc1:4, base=0)"


def test_what_differs_between_rows_is_told_also_where_it_is_nothing():
    rows = [{"connectivity": "radix", "connectivity_params": {"radices": given}} for given in ([], [["fc1", 4]])]
    assert labels("connectivity", rows) == ["radix radices=–", "radix radices=fc1:4"]
