"""Two sweeps of one home that have trials in common, driven at the same time, each by a process of its own with one trial at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fleet_sweeps import enter

from sparsefleet.ledger import read_ledger

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

GRID = """name: {name}
train: {{epochs: 20, batch_size: 32}}
seeds: 2
resources: {{cpus: 1}}
axes:
  density: [{density}]
  method: [{{rewirer: set, layer: csr}}]
"""


def test_two_sweeps_share_their_twins_and_each_keeps_to_its_limit(tmp_path: Path) -> None:
    home = Path(os.environ["SPARSEFLEET_HOME"])
    sweeps = [enter(home, GRID.format(name=name, density=density)) for name, density in (("one", 0.1), ("other", 0.3))]
    drivers = [
        subprocess.Popen(
            [sys.executable, "-m", "sparsefleet.cli", "resume", sweep, "--max-parallel", "1"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for sweep in sweeps
    ]
    try:
        said = [driver.communicate(timeout=500)[1] for driver in drivers]
    finally:
        for driver in drivers:  # both have ended, or are ended
            driver.kill()
            driver.wait()
    assert [driver.returncode for driver in drivers] == [0, 0], said
    with read_ledger(home) as ledger:
        rows = {sweep: list(ledger.trials(sweep)) for sweep in sweeps}
    assert [row.state for sweep in sweeps for row in rows[sweep]] == ["SUCCEEDED"] * 8
    shared = {row.key for row in rows[sweeps[0]]} & {row.key for row in rows[sweeps[1]]}
    assert len(shared) == 2
    attempts: dict[str, list[dict[str, Any]]] = {row.key: row.attempts for sweep in sweeps for row in rows[sweep]}
    assert len(attempts) == 6
    assert [len(made) for made in attempts.values()] == [1] * 6  # whoever came second waited, and had it
    spans = {sweep: sorted((a["started"], a["ended"]) for (a,) in attempts.values() if a["sweep"] == sweep) for sweep in sweeps}
    assert all(len(found) >= 2 for found in spans.values())
    for found in spans.values():
        assert all(ended <= started for (_, ended), (started, _) in pairwise(found))
    one, other = spans.values()
    assert max(one[0][0], other[0][0]) < min(one[-1][1], other[-1][1]), "one sweep had ended before the other began"
