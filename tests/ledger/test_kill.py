"""What the ledger acknowledged survives the SIGKILL of its writer."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from sparsefleet.ledger import open_ledger

WRITER = """
import sys
from pathlib import Path
from sparsefleet.ledger import SweepTrial, open_ledger
home, start = Path(sys.argv[1]), int(sys.argv[2])
ledger = open_ledger(home)
for i in range(start, start + 100_000):
    key = f"{i:064x}"
    ledger.create_sweep(f"s-{i}", "s", "d", "", {}, [SweepTrial(0, key, key[-12:], {"seed": i}, "dense")])
    assert ledger.commit(key, ledger.lease(key, f"s-{i}", "n"), {"state": "SUCCEEDED", "reason": None, "value": i})
    sys.stdout.write(f"{i}\\n"); sys.stdout.flush()
"""


def test_no_acknowledged_record_is_lost(tmp_path: Path) -> None:
    rng, acknowledged = random.Random(0), []
    for start in range(0, 12 * 100_000, 100_000):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(start)], stdout=subprocess.PIPE, text=True)
        writer.stdout.readline()
        acknowledged.append(start)
        time.sleep(rng.uniform(0.01, 0.15))
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged += [int(line) for line in writer.communicate()[0].splitlines() if line]
    with open_ledger(tmp_path) as ledger:
        assert ledger._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert len(acknowledged) > 50
        assert [ledger.trial(f"{i:064x}").record["value"] for i in acknowledged] == acknowledged
