"""RF-18: a grid of 1000 trials that has ended is submitted again. Nothing runs, and it is said within two seconds.

The thousand records are committed through the ledger, one after the other as a driver does, and not trained: what counts here is their number.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.chaos.sweep import Sweep
from benchmarks.figures import Figure, Run
from sparsefleet.ledger import SweepLock, open_ledger, read_ledger
from sparsefleet.spawn import module_command

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
        sweep = Sweep(home, n_seeds, epochs=1)
        asked.say(f"{2 * n_seeds} trials entered")
        _commit_all(sweep)
        megabytes = (home / "ledger.db").stat().st_size / 1e6
        asked.say(f"committed, {megabytes:.1f} MB")
        command = module_command("sparsefleet.cli", "submit", "grid", str(sweep.grid))
        walls, said = [], ""
        for _ in range(n_times):
            begun = time.perf_counter()
            done = subprocess.run(command, env=sweep.environment, cwd=home, capture_output=True, text=True, check=False)
            walls.append(time.perf_counter() - begun)
            said = done.stderr
            if done.returncode:
                raise RuntimeError(done.stderr)
        with read_ledger(home) as ledger:
            n_runs = sum(row.attempt for row in ledger.trials(sweep.id, with_record=False)) - 2 * n_seeds
    expected = f"already complete: {2 * n_seeds} cached, 0 to run"
    walls.sort()
    quick = asked.note()
    return [
        Figure("trials of the finished grid", "trials", 2 * n_seeds, target=1000, note=quick),
        Figure("executions", "trials", n_runs, target=0, at_least=False, note=quick),
        Figure("it says so", "sentences", said.count(expected), target=1, note=said.splitlines()[0] if said else ""),
        Figure(
            "submit grid again, whole process",
            "s",
            walls[len(walls) // 2],
            spread=(walls[0], walls[-1]),
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
        with ledger.batch():  # as in a home whose runs are all in MLflow: nothing is left to be sent
            for item in ledger.outbox(ledger.outbox_size()):
                ledger.mark_uploaded(item.id, None)
