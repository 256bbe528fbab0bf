"""The rows of a sweep name each other by keys that are in the sweep."""

import pytest

from sparsefleet.fleet.enqueue import sweep_trials
from sparsefleet.grid.load import load_grid
from sparsefleet.registry import catalog

GRID = """
name: keys
dataset: digits
model: {mlp: {hidden: [16]}}
optimizer: {sgd: {lr: 0.1}}
train: {epochs: 1}
density: 0.2
layer: csr
seeds: 2
control_arms: [small-dense]
axes:
  method:
    - {rewirer: static, resources: {cpus: 1}}
    - {rewirer: set, resources: {cpus: 2}}
    - {pruner: magnitude, start: twin, resources: {cpus: 2}}
"""


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(GRID)
    plugins = catalog()
    return list(sweep_trials(load_grid(str(path), catalog=plugins), plugins, tmp_path))


def test_twins_rivals_and_starts_are_in_the_sweep_whatever_resources_the_points_ask_for(rows):
    keys = {row.key for row in rows}
    assert len(keys) == len(rows)
    assert {row.request["threads"] for row in rows} == {1, 2}
    for row in rows:
        assert row.twin_key is None or row.twin_key in keys
        assert row.rival_key is None or row.rival_key in keys
        assert row.depends_on is None or row.depends_on in keys
    assert any(row.depends_on for row in rows)
    assert all(row.twin_key for row in rows if row.arm in ("sparse", "random-static"))


def entered(tmp_path, text):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    plugins = catalog()
    return list(sweep_trials(load_grid(str(path), catalog=plugins), plugins, tmp_path))


TUNED = """
name: tuned
dataset: digits
model: {mlp: {hidden: [16]}}
optimizer: {sgd: {lr: {select: [0.1, 0.2]}}}
train: {epochs: 1}
density: 0.2
layer: csr
axes:
  method:
    - {rewirer: static}
    - {rewirer: set, optimizer.sgd.lr: {select: [0.2, 0.3]}}
    - {rewirer: {set: {every: 7}}, optimizer.sgd.lr: 0.1}
"""


def test_candidates_know_their_selections_and_their_partners(tmp_path):
    rows = entered(tmp_path, TUNED)
    keys = [row.key for row in rows]
    assert len(set(keys)) == len(keys)
    assert {row.twin_key for row in rows if row.twin_key} <= set(keys)
    dense = {row.spec["optimizer"]["lr"]: row.request["tuning"]["parts"] for row in rows if row.arm == "dense"}
    assert {lr: [(p["candidate"], p["n"]) for p in parts] for lr, parts in dense.items()} == {
        0.1: [(0, 2)],
        0.2: [(1, 2), (0, 2)],  # of the twin of static, and of the twin of set
        0.3: [(1, 2)],
    }
    for row in rows:
        if row.arm == "sparse" and row.spec["method"]["rewirer"]["params"].get("every") != 7:
            twins = {p["id"] for parts in dense.values() for p in parts}
            assert row.request["tuning"]["twin"] in twins
            assert row.request["tuning"]["rival"]
    assert [row.arm for row in rows if "tuning" not in row.request] == ["sparse"]


def test_a_candidate_has_the_key_that_it_has_without_select(tmp_path):
    plain = {
        row.key for row in entered(tmp_path, TUNED.split("axes:")[0].replace("{select: [0.1, 0.2]}", "0.1") + "method: {rewirer: static}\n")
    }
    assert plain <= {row.key for row in entered(tmp_path, TUNED)}
