"""MLflow's tables in PostgreSQL, without a server between: made once by whoever is first, and written as in SQLite."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import backend_servers as servers
import pytest

from sparsefleet.ledger import open_ledger
from sparsefleet.track import names, read, server
from sparsefleet.track.upload import UNREACHABLE
from tests.track.track_homes import filled_home, upload
from tests.track.track_state import everything, trial_runs

TOUCH = "import sys; from sparsefleet.track import server; server.connect(sys.argv[1], create=True)"
N_AT_ONCE = 4


def _touched_at_once(uri: str, folder: Path) -> list[str]:
    """What each of several processes said that met the same empty database; each has a lock folder of its own, as on another machine."""
    started = []
    for i in range(N_AT_ONCE):
        own = folder / f"tmp-{i}"
        own.mkdir()
        env = {**os.environ, "TMPDIR": str(own)}
        started.append(subprocess.Popen([sys.executable, "-c", TOUCH, uri], env=env, stderr=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=120)[1] for process in started]
    return [text for process, text in zip(started, said, strict=True) if process.returncode]


def test_the_first_touch_by_several_processes_at_once(postgres: servers.Postgres, tmp_path: Path) -> None:
    uri = postgres.create("touched")
    assert _touched_at_once(uri, tmp_path) == []
    assert [e.name for e in server.connect(uri).search_experiments()] == ["Default"]


def test_two_homes_begin_in_one_new_database_and_each_trial_is_one_run(
    postgres: servers.Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SPARSEFLEET_ARTIFACTS", "SPARSEFLEET_HOME"):
        monkeypatch.delenv(name, raising=False)
    uri = postgres.create("homes")
    homes = [tmp_path / "a", tmp_path / "b"]
    trials = [trial.key for home in homes for trial in filled_home(home, 3)]
    environment = {k: v for k, v in os.environ.items() if k != "SPARSEFLEET_HOME"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "sparsefleet.track.upload", "--home", str(home), "--until-empty"],
            env={**environment, "MLFLOW_TRACKING_URI": uri},
            stderr=subprocess.PIPE,
            text=True,
        )
        for home in homes
    ]
    said = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    client = server.connect(uri)
    runs = trial_runs(client)
    assert sorted(run.data.tags[names.TRIAL_KEY] for run in runs) == sorted(trials)
    assert {run.info.status for run in runs} == {"FINISHED"}
    once = everything(client)
    for home in homes:
        _forget_uploads(home)
        assert upload(home, uri).returncode == 0
    assert everything(client) == once
    rows, _ = read.rows("quick", uri, server.home_id(homes[0]))
    with open_ledger(homes[0]) as ledger:
        assert [row.record for row in rows] == [row.record for row in ledger.trials("quick-12345678")]


def _forget_uploads(home: Path) -> None:
    import sqlite3

    with sqlite3.connect(home / "ledger.db") as db:
        db.execute("UPDATE outbox SET uploaded=NULL, run_id=NULL")
    db.close()


def test_a_database_that_is_away_is_said_soon_and_without_its_password(tmp_path: Path) -> None:
    filled_home(tmp_path, 1)
    begun = time.monotonic()
    away = upload(tmp_path, f"postgresql://fleet:swordfish@{servers.HOST}:{servers.free_port()}/gone")
    assert away.returncode == UNREACHABLE, away.stderr
    assert time.monotonic() - begun < 40
    assert "did not answer" in away.stderr
    assert "swordfish" not in away.stderr
