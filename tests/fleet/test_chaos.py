"""RF-01, as it stands in the requirements."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chaos.kill_workers import run


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killing_busy_workers_loses_and_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEFLEET_HOME", str(tmp_path))
    figures = run(tmp_path, n_trials=200, every_s=3.0)
    assert figures["kills"] > 0
    assert (figures["state"], figures["succeeded"]) == ("DONE", 200)
    assert (figures["lost"], figures["committed_twice"], figures["problems"]) == (0, 0, [])
