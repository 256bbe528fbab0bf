"""What becomes of a driver in the background before its starter has gone."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_home import fill, run_program

from sparsefleet.cli.drive import Drive, _background
from sparsefleet.cli.session import Session
from sparsefleet.errors import SweepLocked
from sparsefleet.ledger import SweepLock, open_ledger, read_ledger


@pytest.mark.ray
def test_of_two_that_start_at_once_the_slower_one_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    sweep = fill(home)
    monkeypatch.setenv("SPARSEFLEET_HOME", str(home))
    with open_ledger(home) as ledger, SweepLock(home, sweep):  # as if another one had taken it between our look and our child's
        ledger.set_sweep_state(sweep, "RUNNING")
        with pytest.raises(SweepLocked, match="is being driven already"):
            _background(Session(), ledger.sweep(sweep), Drive(sweep, detach=True))


@pytest.mark.ray
def test_a_sweep_that_ends_at_once_ends_with_its_own_code(tmp_path: Path) -> None:
    home = tmp_path / "home"
    sweep = fill(home, seeds=1)
    with open_ledger(home) as ledger, SweepLock(home, sweep):
        for row in list(ledger.trials(sweep)):
            assert ledger.refuse(row.key, "INVALID", "made to fail")
    done = run_program("resume", sweep, "--detach", home=home)
    assert done.returncode == 5, done.stderr
    assert "has ended already" in done.stderr
    assert read_ledger(home).sweep(sweep).state == "FAILED"
