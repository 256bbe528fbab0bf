"""What a stranger does, for every family: a new project, installed as its own distribution, listed, checked, tested, submitted."""

from __future__ import annotations

import pytest

from benchmarks.cli.outsider import travel
from sparsefleet.plugin import FAMILIES

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.mark.parametrize("family", FAMILIES)
def test_from_plugins_new_to_a_row(family, tmp_path):
    name = f"outside-{family}"
    journey = travel(family, name, tmp_path)
    _check(journey, family, name)


def test_an_editable_installation_in_an_environment_of_its_own(tmp_path):
    """Nothing is fetched: pip takes an editable sparsefleet for what the project depends on."""
    _check(travel("pruner", "outside-editable", tmp_path, editable=True), "pruner", "outside-editable")


def _check(journey, family, name):
    print(f"{family}: {journey.check_s:.1f} s to a green check, {journey.row_s:.1f} s to the first rows")
    assert (journey.listed["distribution"], journey.listed["version"], journey.listed["state"]) == (f"sf-{name}", "0.1.0", "ok")
    assert journey.rows
    assert all(row["n_failed"] == 0 and row["n_ok"] == row["trials"] for row in journey.rows)
