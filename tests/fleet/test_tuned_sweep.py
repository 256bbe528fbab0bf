"""A tuned sweep from its grid to its table: every candidate is run, the validation share chooses, and MLflow alone gives the same table."""

from __future__ import annotations

from pathlib import Path

import pytest
from fleet_sweeps import Told, enter, settings

from sparsefleet.fleet.driver import submit
from sparsefleet.ledger import open_ledger
from sparsefleet.report.compare import rows
from sparsefleet.report.table import render
from sparsefleet.track import read, server
from sparsefleet.track.upload import Following, drain

pytestmark = [pytest.mark.ray, pytest.mark.timeout(280)]

GRID = """
name: tuned
train: {epochs: 2}
validation: 0.2
seeds: 2
density: 0.2
layer: csr
control_arms: [small-dense]
optimizer.sgd.lr: {select: [0.0001, 0.1]}
axes:
  method:
    - {rewirer: static}
    - {rewirer: set, optimizer.sgd.lr: 0.1}
"""


def test_a_tuned_sweep_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEFLEET_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    sweep = enter(tmp_path, GRID.replace("{select: [0.0001, 0.1]}", "0.1").replace("tuned", "plain"))
    assert submit(tmp_path, sweep, settings(tmp_path, cpus=2), Told()).state == "DONE"
    sweep = enter(tmp_path, GRID)
    row = submit(tmp_path, sweep, settings(tmp_path, cpus=2), Told())
    assert row.state == "DONE"
    # 2 seeds of: 2 dense, 2 static, 1 set, 2 small-dense; those at 0.1 are the plain grid's, and are not run again
    assert (row.counts["total"], row.counts["cached"]) == (14, 8)
    with open_ledger(tmp_path) as ledger:
        trials = list(ledger.trials(sweep))
        table = rows(trials)
        assert rows(ledger.trials(sweep)) == table  # twice the same
    arms = ["dense", "random-static", "small-dense", "sparse"]
    assert sorted((one["arm"], one["trials"]) for one in table) == [(arm, 2) for arm in arms]
    dense, tuned = table[0], next(one for one in table if one["arm"] == "random-static")
    assert dense["tuning"]["selected"] == tuned["tuning"]["selected"] == {"optimizer.lr": 0.1}  # 0.0001 learns nothing in two epochs
    assert dense["tuning"]["scores"][0] < dense["tuning"]["scores"][1]
    assert {one["twin"] for one in table[1:]} == {dense["id"]}
    assert all(one["twin_tuned"] and one["n_paired"] == 2 for one in table[1:])
    (fixed,) = (one for one in table if one["method"] == "set")
    assert (fixed["tuning"], fixed["unequal_budget"]) == (None, {"candidates": [1, 2], "tuning_epochs": [2, 4]})
    assert tuned["unequal_budget"] == {}
    assert any(line.startswith("unequal budget, tuning: 1 candidate, its twin 2") for line in render(table))

    uri = server.local_uri(tmp_path)
    server.connect(uri, create=True)
    assert drain(tmp_path, uri, Following()) == 0
    tracked, timings = read.rows(sweep, uri)
    assert rows(tracked, timings) == table
