"""RF-04: a process that writes to the ledger is killed 60 times. What it was told was durable is there afterwards."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from benchmarks.chaos.stored import records
from benchmarks.figures import Figure, Run

WRITER = """
import sys
from pathlib import Path
from sparsefleet.ledger import SweepTrial, open_ledger
home, start = Path(sys.argv[1]), int(sys.argv[2])
with open_ledger(home) as ledger:
    for first in range(start, start + 1_000_000, 20):
        keys = [f"{i:064x}" for i in range(first, first + 20)]
        ledger.create_sweep(f"s-{first}", "s", "d", "", {}, [SweepTrial(n, key, key[-12:], {"n": n}, "dense") for n, key in enumerate(keys)])
        for some in (keys[:1], keys[1:4], keys[4:]):  # a transaction of one, of three and of sixteen commits
            with ledger.batch():
                for key in some:
                    attempt = ledger.lease(key, f"s-{first}", "n")
                    assert ledger.commit(key, attempt, {"state": "SUCCEEDED", "reason": None, "value": int(key, 16)})
            for key in some:
                sys.stdout.write(f"{int(key, 16)}\\n")
            sys.stdout.flush()
"""
KILLS = 60


def figures(asked: Run) -> list[Figure]:
    """Acknowledged commits that are not in the ledger after so many kills at random moments."""
    n_kills, rng = asked.pick(KILLS, 10), random.Random(0)
    with tempfile.TemporaryDirectory(prefix="sparsefleet-writers-") as folder:
        home = Path(folder)
        acknowledged: list[int] = []
        ready = [_writer(home, 0), _writer(home, 1)]  # the next one starts while this one writes: two writers at once, as two sweeps have
        for n in range(n_kills):
            writer = ready.pop(0)
            assert writer.stdout is not None
            acknowledged.append(int(writer.stdout.readline()))
            time.sleep(rng.uniform(0.0, 0.2))
            os.kill(writer.pid, signal.SIGKILL)
            acknowledged += [int(line) for line in writer.communicate()[0].splitlines(keepends=True) if line.endswith("\n")]
            ready.append(_writer(home, n + 2))
        for writer in ready:
            writer.kill()
            acknowledged += [int(line) for line in writer.communicate()[0].splitlines(keepends=True) if line.endswith("\n")]
        with closing(sqlite3.connect(home / "ledger.db")) as db:
            integrity = [text for (text,) in db.execute("PRAGMA integrity_check")]
            rows = dict(records(db))
            open_with_record = db.execute("SELECT count(*) FROM trials WHERE (state='SUCCEEDED') != (record NOT NULL)").fetchone()[0]
        lost = [i for i in acknowledged if rows.get(f"{i:064x}", {}).get("value") != i]
    quick = asked.note()
    return [
        Figure("kills of the writer", "kills", n_kills, target=KILLS, note=quick),
        Figure("acknowledged commits", "rows", len(acknowledged), note=quick),
        Figure("acknowledged commits lost", "rows", len(lost), target=0, at_least=False, note=quick),
        Figure("problems of the file", "problems", len([t for t in integrity if t != "ok"]), target=0, at_least=False, note=integrity[0]),
        Figure("half-written commits", "rows", open_with_record, target=0, at_least=False, note=quick),
    ]


def _writer(home: Path, n: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(home), str(n * 1_000_000)], stdout=subprocess.PIPE, text=True)
