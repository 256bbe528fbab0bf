"""RF-03: a process is killed at every named point, at its first, a middle and its last passing; what is committed in the end is the same.

The driver is the product's, in a process of its own; the cluster is one that stays, so that a case is not mostly Ray's start. Each case is one
home whose driver is started until it ends by itself; the deaths of its three passings follow each other. The uploader takes part only where the
point is one of its own: it takes some seconds of a processor at every start of a driver.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.chaos.history import violations
from benchmarks.chaos.stored import Stored, records as stored_records
from benchmarks.figures import Figure, Run
from sparsefleet.crash_points import POINTS, VARIABLE

GRID = """
name: crash
dataset: digits
model: {mlp: {hidden: [16]}}
optimizer: {sgd: {lr: 0.1}}
train: {epochs: 1, batch_size: 256}
seeds: 3
control_arms: []
axes:
  density: [0.2]
  method: [{rewirer: set}]
limits: {checkpoint_every_s: 0.001}
"""
NOT_TIMED = "measure: {level: none}\n"
TIMED = "measure: {level: screen, batch_sizes: [32], ops: [forward]}\n"
ENTER = """
import sys
from pathlib import Path
from sparsefleet.registry import catalog
from sparsefleet.grid.load import load_grid
from sparsefleet.fleet.enqueue import enqueue
home = Path(sys.argv[1])
plugins = catalog()
print(enqueue(load_grid(str(home / "grid.yaml"), catalog=plugins), plugins, home, home / "data"))
"""
DRIVE = """
import sys
from pathlib import Path
from sparsefleet.fleet import driver
class Silent(driver.Uploader):
    def start(self):
        pass
if sys.argv[4] == "silent":
    driver.Uploader = Silent
home, sweep, address = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
measure = {"level": "screen", "batch_sizes": [32], "ops": ["forward"]} if sys.argv[5] == "timed" else {"level": "none"}
settings = driver.DriverSettings(data_root=home / "data", address=address, measure=measure)
print(driver.submit(home, sweep, settings, lambda event: None).state)
"""
TIMING_POINTS = ("timing-inside", "timing-after")
UPLOAD_POINTS = ("uploaded-before",)
AWAY_POINTS = ("spool-between",)
_TIMES = ("started", "ended", "wall_s", "phases_s", "attempt", "attempts_log", "warnings")
_ALTERS = ("log.txt", "environment.json", "mask-steps/")
"""Beginnings of the names of artifacts that differ from run to run: times, loads, and safetensors files whose two lines of metadata the library
writes in an order of chance. The masks of the end, in ``masks.safetensors``, are compared."""
_MOST_STARTS = 12


def committed(home: Path) -> str:
    """Digest of every fact that a ledger has committed: keys, states, records without their times and attempts, sweeps, timed configurations."""
    facts: list[Any] = []
    with closing(sqlite3.connect(f"{(home / 'ledger.db').as_uri()}?mode=ro", uri=True)) as db:
        stored, records = Stored(db), dict(stored_records(db))
        for key, spec, state in db.execute("SELECT key, spec, state FROM trials ORDER BY key"):
            told = {name: value for name, value in records[key].items() if name not in _TIMES} if key in records else None
            if told:
                told["artifacts"] = sorted(ref["sha256"] for ref in told["artifacts"] if not ref["name"].startswith(_ALTERS))
            facts.append([key, json.loads(stored.text(spec) or "null"), state, told])
        facts += map(list, db.execute("SELECT sweep, digest, state FROM sweeps ORDER BY sweep"))
        facts += map(list, db.execute("SELECT sweep, ordinal, key, arm, twin_key FROM sweep_trials ORDER BY sweep, ordinal"))
        facts += map(list, db.execute("SELECT sweep, config_key, keys, state FROM timings ORDER BY sweep, config_key"))
        facts += map(list, db.execute("SELECT DISTINCT kind, sweep, key FROM outbox WHERE kind IN ('trial', 'timing') ORDER BY 1, 2, 3"))
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class Case:
    """One home, whose processes die at the given passings of one point."""

    def __init__(self, home: Path, point: str, passings: tuple[int, ...], address: str) -> None:
        self.home, self.point, self.passings, self._address = home, point, passings, address
        self.kind = ["silent" if point not in UPLOAD_POINTS else "uploads", "timed" if point in TIMING_POINTS else "not-timed"]
        own = {"SPARSEFLEET_HOME": str(home), "SPARSEFLEET_DATA": str(home / "data"), "SPARSEFLEET_PICTURES": "off"}
        fault = {VARIABLE: ",".join(f"{point}:{n}" for n in passings)} if point else {}
        self._environment = {**os.environ, **own, **fault}
        home.mkdir(mode=0o700)
        (home / "grid.yaml").write_text(GRID + (TIMED if point in TIMING_POINTS else NOT_TIMED))
        self.deaths = 0

    def watch(self, points: Mapping[str, tuple[int, ...]]) -> None:
        """Counts passings of these points, too."""
        self._environment[VARIABLE] = ",".join(f"{point}:{n}" for point, passings in points.items() for n in passings)

    def run(self) -> dict[str, Any]:
        """Until the driver ends by itself; what came of it."""
        begun = time.monotonic()
        entered = self._until_it_ends([sys.executable, "-P", "-c", ENTER, str(self.home)])
        sweep = entered.strip().splitlines()[-1]
        state = self._until_it_ends([sys.executable, "-P", "-c", DRIVE, str(self.home), sweep, self._address, *self.kind]).strip()
        return {
            "point": self.point,
            "asked": list(self.passings),
            "passed": passed(self.home).get(self.point, 0),
            "driver_deaths": self.deaths,
            "state": state,
            "committed": committed(self.home),
            "violations": violations(self.home, sweep),
            "wall_s": round(time.monotonic() - begun, 1),
        }

    def _until_it_ends(self, command: list[str]) -> str:
        for _ in range(_MOST_STARTS):
            done = subprocess.run(command, env=self._environment, cwd=self.home, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return done.stdout
            if done.returncode != -signal.SIGKILL:
                raise RuntimeError(f"{self.point}: the process ended with {done.returncode}: {done.stderr[-2000:]}")
            self.deaths += 1
        raise RuntimeError(f"{self.point}: {_MOST_STARTS} starts, and no end")


def passed(home: Path) -> Mapping[str, int]:
    """How often each point was passed that was asked for."""
    folder = home / "faults"
    return {path.name: path.stat().st_size for path in folder.iterdir()} if folder.is_dir() else {}


def figures(asked: Run) -> list[Figure]:
    """How many of the cases end with what the undisturbed run committed."""
    points = [point for point in POINTS if point not in AWAY_POINTS] if not asked.quick else ["lease-inside", "child-end", "commit-inside"]
    with tempfile.TemporaryDirectory(prefix="sparsefleet-crash-") as folder, _cluster(Path(folder)) as address:
        root = Path(folder)
        every = dict.fromkeys(points, (1 << 30,))  # passings that never come: how often each is passed undisturbed
        quiet = {kind: Case(root / f"quiet-{kind}", "", (), address) for kind in ("plain", "timed")}
        if any(point in TIMING_POINTS for point in points):
            (quiet["timed"].home / "grid.yaml").write_text(GRID + TIMED)
            quiet["timed"].kind[1] = "timed"
        else:
            del quiet["timed"]
        for case in quiet.values():
            case.watch(every)
        before = {name: case.run() for name, case in quiet.items()}
        counts = {point: max(passed(case.home).get(point, 0) for case in quiet.values()) for point in points}
        asked.say(f"undisturbed: {counts}")
        cases = []
        for point in points:
            n = max(counts[point], 1)
            cases.append(Case(root / point, point, tuple(sorted({1, (n + 1) // 2, n})), address))
        with ThreadPoolExecutor(2) as pool:
            results = []
            for result in pool.map(Case.run, cases):
                asked.say(f"{result['point']}: {result['asked']}, {result['driver_deaths']} deaths of the driver, {result['wall_s']} s")
                results.append(result)
    for result in results:
        same = before["timed" if result["point"] in TIMING_POINTS else "plain"]["committed"]
        result["same"] = result["committed"] == same and result["state"] == "DONE"
        result["died"] = result["passed"] >= max(result["asked"])
    asked.keep({"undisturbed": before, "passings": counts, "cases": results})
    wrong = [result["point"] for result in results if not result["same"]]
    n_violations = sum(len(result["violations"]) for result in results) + sum(len(result["violations"]) for result in before.values())
    n_kills = sum(len(result["asked"]) for result in results if result["died"])
    quick = asked.note()
    return [
        Figure(
            "points at which a process was killed",
            "points",
            sum(result["died"] for result in results),
            target=min(12, len(points)),
            note=quick,
        ),
        Figure("kills", "kills", n_kills, note=quick),
        Figure(
            "points after which the committed facts differ", "points", len(wrong), target=0, at_least=False, note=", ".join(wrong) or quick
        ),
        Figure("violations of the contract", "violations", n_violations, target=0, at_least=False, note=quick),
    ]


@contextmanager
def _cluster(folder: Path) -> Iterator[str]:
    """The address of a Ray that stays while the drivers die."""
    code = (
        "import sys, ray; from ray.cluster_utils import Cluster;"
        " cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 4, 'object_store_memory': 128 << 20, 'include_dashboard': False});"
        " print(cluster.address, flush=True); sys.stdin.read(); cluster.shutdown()"
    )
    with (folder / "ray.log").open("wb") as log:
        head = subprocess.Popen(
            [sys.executable, "-P", "-c", code], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
    assert head.stdin is not None
    assert head.stdout is not None
    try:
        address = next(line for line in head.stdout if re.fullmatch(r"[\d.]+:\d+\s*", line)).strip()
        yield address
    finally:
        head.stdin.close()
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            head.kill()
