"""RF-18: a grid of 1000 trials that has ended is submitted again. Nothing runs, and it is said within two seconds, whatever waits for MLflow.

The thousand records are committed through the ledger, one after the other as a driver does, and not trained: what counts here is their number.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.chaos.sweep import Sweep, left_behind
from benchmarks.figures import Figure, Run
from sparsefleet.ledger import SweepLock, open_ledger, read_ledger
from sparsefleet.spawn import module_command

_NOBODY = "http://127.0.0.1:9"
"""Where nobody listens."""
_LIMIT_S = 120.0
TRAIN = """
import json, sys
from pathlib import Path
from sparsefleet.ledger import read_ledger
from sparsefleet.fleet.jobs import trial_job
from sparsefleet.trial.request import TrialRequest
from sparsefleet.trial.run import run_trial
home, sweep = Path(sys.argv[1]), sys.argv[2]
with read_ledger(home) as ledger:
    rows = list(ledger.trials(sweep))
one_of_each = {bool(row.spec["method"].get("rewirer")): row for row in rows}
for row in one_of_each.values():
    request = trial_job(row, 1, home / "data", None)["request"]
    record = run_trial(TrialRequest.model_validate({**request, "workdir": str(home / "work" / row.key)})).to_json()
    print(json.dumps(record))
"""


def figures(asked: Run) -> list[Figure]:
    """Executions and seconds of the second submission; what the ledger weighs."""
    n_seeds, n_times = asked.pick(500, 25), asked.pick(5, 2)
    with tempfile.TemporaryDirectory(prefix="sparsefleet-resubmit-") as folder:
        home = Path(folder)
        sweep = Sweep(home, n_seeds, epochs=1, environment={"MLFLOW_TRACKING_URI": _NOBODY})
        asked.say(f"{2 * n_seeds} trials entered")
        _commit_all(sweep)
        megabytes = (home / "ledger.db").stat().st_size / 1e6
        asked.say(f"committed, {megabytes:.1f} MB")
        n_waiting = _n_waiting(home)
        waiting_s, said_waiting = _submitted(sweep, asked.pick(3, 1))
        n_left = _n_waiting(home)
        _empty_outbox(home)
        walls, said = _submitted(sweep, n_times)
        with read_ledger(home) as ledger:
            n_runs = sum(row.attempt for row in ledger.trials(sweep.id, with_record=False)) - 2 * n_seeds
    expected = f"already complete: {2 * n_seeds} cached, 0 to run"
    asked.keep({"walls_s": walls, "waiting_s": waiting_s, "said": said_waiting})
    quick = asked.note()
    return [
        Figure("trials of the finished grid", "trials", 2 * n_seeds, target=1000, note=quick),
        Figure("executions", "trials", n_runs, target=0, at_least=False, note=quick),
        Figure("it says so", "sentences", said.count(expected), target=1, note=said.splitlines()[0] if said else ""),
        Figure("submit grid again, whole process", "s", median(walls), (min(walls), max(walls)), target=2.0, at_least=False, note=quick),
        Figure("items that waited for MLflow, and still did afterwards", "items", min(n_waiting, n_left), target=2 * n_seeds, note=quick),
        Figure("it says so then", "sentences", said_waiting.count(f"{n_waiting} items wait for MLflow"), target=1, note=quick),
        Figure(
            "submit grid again while they wait, whole process",
            "s",
            median(waiting_s),
            (min(waiting_s), max(waiting_s)),
            target=2.0,
            at_least=False,
            note=quick,
        ),
        Figure("ledger", "MB", megabytes, note=quick),
    ]


def _commit_all(sweep: Sweep) -> None:
    """Every trial with the record of a real one of its kind, under its own name."""
    import json

    done = subprocess.run(
        [sys.executable, "-P", "-c", TRAIN, str(sweep.home), sweep.id], env=sweep.environment, capture_output=True, text=True, check=True
    )
    records = {bool(record["spec"]["method"].get("rewirer")): record for record in map(json.loads, done.stdout.splitlines())}
    with open_ledger(sweep.home) as ledger, SweepLock(sweep.home, sweep.id):
        for row in list(ledger.trials(sweep.id)):
            record = records[bool(row.spec["method"].get("rewirer"))]
            with ledger.batch():
                attempt = ledger.lease(row.key, sweep.id, os.uname().nodename)
                assert attempt is not None
                ledger.mark_running(row.key, attempt, os.uname().nodename)
                ledger.commit(row.key, attempt, {**record, "trial_key": row.key, "spec_id": row.spec_id, "spec": row.spec})
        ledger.set_sweep_state(sweep.id, "DONE")


def _submitted(sweep: Sweep, n_times: int) -> tuple[list[float], str]:
    """Seconds of every submission, and what the last one said; what it leaves in the background has ended before the next."""
    command = module_command("sparsefleet.cli", "submit", "grid", str(sweep.grid))
    walls, said = [], ""
    for _ in range(n_times):
        begun = time.perf_counter()
        done = subprocess.run(command, env=sweep.environment, cwd=sweep.home, capture_output=True, text=True, check=False)
        walls.append(time.perf_counter() - begun)
        said = done.stderr
        if done.returncode:
            raise RuntimeError(said)
        until = time.monotonic() + _LIMIT_S
        while left_behind(sweep.home):
            if time.monotonic() > until:
                raise RuntimeError(f"the uploader does not end: {(sweep.home / 'uploader.log').read_text()[-2000:]}")
            time.sleep(0.1)
    return walls, said


def _n_waiting(home: Path) -> int:
    with read_ledger(home) as ledger:
        return ledger.outbox_size()


def _empty_outbox(home: Path) -> None:
    """As in a home whose runs are all in MLflow."""
    with open_ledger(home) as ledger, ledger.batch():
        for item in ledger.outbox(ledger.outbox_size()):
            ledger.mark_uploaded(item.id, None)
