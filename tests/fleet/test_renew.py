"""``resume --accept-new-code``: what depends on changed code gets new keys and runs, everything else and every old record stays."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fleet_sweeps import enter

from sparsefleet.distributions import forget
from sparsefleet.errors import SweepLocked, UserError
from sparsefleet.fleet.renew import renew
from sparsefleet.ledger import Ledger, SweepLock, open_ledger, read_ledger
from sparsefleet.registry import catalog

PRUNER = '''"""A pruner whose code changes."""
from sparsefleet import Pruner, hookimpl

class Renewed(Pruner):
    """By size."""
    name = "renewed"

    def score(self, conn):
        return conn.weight.abs()

@hookimpl
def sparsefleet_pruners():
    return [Renewed]
'''
GRID = """name: renew
train: {epochs: 0, batch_size: 64}
seeds: 2
axes:
  density: [0.2]
  method:
    - {pruner: renewed, start: twin, layer: csr}
    - {rewirer: static, layer: csr}
"""


@pytest.fixture
def plugin(plugin_distribution: Callable[..., Path]) -> Callable[[], None]:
    """The pruner is installed; a function that edits its code."""
    file = plugin_distribution("sf-renewed", {"renewed": PRUNER}) / "renewed.py"

    def edit() -> None:
        file.write_text(PRUNER.replace("conn.weight.abs()", "conn.weight ** 2  # edited"))
        forget()

    return edit


def commit_all(ledger: Ledger, sweep: str) -> dict[str, str]:
    """Ends every trial of the sweep; the digests of the records by key."""
    with SweepLock(ledger.home, sweep):
        for trial in list(ledger.trials(sweep, with_record=False)):
            attempt = ledger.lease(trial.key, sweep, "n")
            assert attempt is not None
            assert ledger.commit(trial.key, attempt, {"state": "SUCCEEDED", "reason": None})
        ledger.set_sweep_state(sweep, "DONE")
    return records(ledger)


def records(ledger: Ledger) -> dict[str, str]:
    """Of every trial of the ledger, whichever sweep shows it."""
    return dict(ledger._db.execute("SELECT key, record_sha256 FROM trials WHERE record NOT NULL").fetchall())


def test_what_depends_on_an_edited_plugin_is_new_and_the_rest_stays(tmp_path: Path, plugin: Callable[[], None]) -> None:
    sweep = enter(tmp_path, GRID)
    with open_ledger(tmp_path) as ledger:
        before = commit_all(ledger, sweep)
        old = {t.spec_id: t for t in ledger.trials(sweep)}
        assert renew(sweep, catalog(), tmp_path, tmp_path / "data") == (0, 6)
        assert ledger.sweep(sweep).counts["SUCCEEDED"] == 6
        plugin()
        with SweepLock(tmp_path, sweep), pytest.raises(SweepLocked):
            renew(sweep, catalog(), tmp_path, tmp_path / "data")
        assert renew(sweep, catalog(), tmp_path, tmp_path / "data") == (2, 6)
        new = {t.spec_id: t for t in ledger.trials(sweep)}
        changed = {spec_id for spec_id, t in new.items() if t.key != old[spec_id].key}
        assert changed == {spec_id for spec_id, t in new.items() if t.spec["method"]["pruner"]}
        assert {t.state for t in new.values() if t.spec_id in changed} == {"PENDING"}
        assert {t.state for t in new.values() if t.spec_id not in changed} == {"SUCCEEDED"}
        assert records(ledger) == before
        for spec_id in changed:
            assert (new[spec_id].twin_key, new[spec_id].depends_on) == (old[spec_id].twin_key, old[spec_id].depends_on)
            assert ledger.trial(spec_id).key == new[spec_id].key  # and not that which no sweep shows any more
            with pytest.raises(UserError, match="unknown trial"):
                ledger.trial(old[spec_id].key)
            assert new[spec_id].request["code"]["pruner/renewed"] != old[spec_id].request["code"]["pruner/renewed"]


@pytest.mark.ray
@pytest.mark.slow
def test_resume_runs_what_is_new_with_the_installed_code(tmp_path: Path, plugin: Callable[[], None]) -> None:
    home = Path(os.environ["SPARSEFLEET_HOME"])
    sweep = enter(home, GRID)
    plugin()
    command = [sys.executable, "-m", "sparsefleet.cli", "resume", sweep, "--accept-new-code"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{sweep}: 2 of 6 trials depend on what has changed and are new" in done.stderr
    installed = catalog().get("pruner", "renewed").digest
    with read_ledger(home) as ledger:
        used = [p["digest"] for t in ledger.trials(sweep) for p in (t.record or {})["plugins"] if p["name"] == "renewed"]
    assert used == [installed] * 2
