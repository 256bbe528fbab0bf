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
