"""RF-03: a process is killed at every named point, at its first, a middle and its last passing; what is committed in the end is the same.

The driver is the product's, in a process of its own; the cluster is one that stays, so that a case is not mostly Ray's start. Each case is one
home with some of the points, whose driver is started until it ends by itself; the deaths of their passings follow each other. Points of a trial's own
process stand in different homes, or one trial would die oftener than its budgets allow. The uploader takes part only where the point is one of
its own: it takes some seconds of a processor at every start of a driver.
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
from collections.abc import Iterator, Mapping, Sequence
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
TIMED = "layer: csr\nmeasure: {level: screen, batch_sizes: [32], ops: [forward]}\n"
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
"""Only their first passing is deadly: a second one comes where a timing was not trustworthy, and a driver that goes on takes it as it is."""
UPLOAD_POINTS = ("uploaded-before",)
AWAY_POINTS = ("spool-between",)
"""Passed only while the artifact store is away, which it is not here: not among the points."""
_TIMES = ("started", "ended", "wall_s", "phases_s", "attempt", "attempts_log", "warnings")
_ALTERS = ("log.txt", "environment.json", "mask-steps/")
"""Beginnings of the names of artifacts that differ from run to run: times, loads, and safetensors files whose two lines of metadata the library
writes in an order of chance. The masks of the end, in ``masks.safetensors``, are compared."""
_HOMES = 5
_MOST_STARTS = 24


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
    """One home, whose processes die at the given passings of some points."""

    def __init__(self, home: Path, passings: Mapping[str, tuple[int, ...]], address: str, *, timed: bool = False) -> None:
        self.home, self.passings, self._address, self.timed = home, passings, address, timed
        self.kind = ["uploads" if passings.keys() & set(UPLOAD_POINTS) else "silent", "timed" if timed else "not-timed"]
        own = {"SPARSEFLEET_HOME": str(home), "SPARSEFLEET_DATA": str(home / "data"), "SPARSEFLEET_PICTURES": "off"}
        fault = {VARIABLE: ",".join(f"{point}:{n}" for point, some in passings.items() for n in some)} if passings else {}
        of_job = {
            "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"env_vars": {**own, **fault}}})
        }  # the cluster's workers have not ours
        self._environment = {**os.environ, **own, **fault, **of_job}
        home.mkdir(mode=0o700)
        (home / "grid.yaml").write_text(GRID + (TIMED if timed else NOT_TIMED))
        self.deaths = 0

    def run(self) -> dict[str, Any]:
        """Until the driver ends by itself; what came of it."""
        begun = time.monotonic()
        entered = self._until_it_ends([sys.executable, "-P", "-c", ENTER, str(self.home)])
        sweep = entered.strip().splitlines()[-1]
        state = self._until_it_ends([sys.executable, "-P", "-c", DRIVE, str(self.home), sweep, self._address, *self.kind]).strip()
        return {
            "asked": {point: list(some) for point, some in self.passings.items()},
            "timed": self.timed,
            "died": [point for point, some in self.passings.items() if passed(self.home).get(point, 0) >= max(some)],
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
                raise RuntimeError(f"{', '.join(self.passings)}: the process ended with {done.returncode}: {done.stderr[-2000:]}")
            self.deaths += 1
        raise RuntimeError(f"{', '.join(self.passings)}: {_MOST_STARTS} starts, and no end")


def passed(home: Path) -> Mapping[str, int]:
    """How often each point was passed that was asked for."""
    folder = home / "faults"
    return {path.name: path.stat().st_size for path in folder.iterdir()} if folder.is_dir() else {}


def figures(asked: Run) -> list[Figure]:
    """How many of the cases end with what the undisturbed run committed."""
    points = (
        [point for point in POINTS if point not in AWAY_POINTS] if not asked.quick else ["store-after", "commit-inside", "timing-inside"]
    )
    with tempfile.TemporaryDirectory(prefix="sparsefleet-crash-") as folder, _cluster(Path(folder)) as address:
        root = Path(folder)
        never = dict.fromkeys(points, (1 << 30,))  # so that it is counted how often each is passed undisturbed
        quiet = [Case(root / "quiet", never, address)]
        if any(point in TIMING_POINTS for point in points):
            quiet.append(Case(root / "quiet-timed", never, address, timed=True))
        for case in quiet:
            case.kind[0] = "silent"
        before = {case.timed: case.run() for case in quiet}
        counts = {point: max(passed(case.home).get(point, 0) for case in quiet) for point in points}
        asked.say(f"undisturbed: {counts}")
        cases = [
            Case(
                root / f"home-{n}",
                {p: _moments(1 if p in TIMING_POINTS else counts[p]) for p in some},
                address,
                timed=some[0] in TIMING_POINTS,
            )
            for n, some in enumerate(_groups(points))
        ]
        results = []
        with ThreadPoolExecutor(2) as pool:
            for result in pool.map(Case.run, cases):
                asked.say(f"{result['asked']}: {result['driver_deaths']} deaths of the driver, {result['wall_s']} s")
                results.append(result)
    for result in results:
        result["same"] = result["committed"] == before[result["timed"]]["committed"] and result["state"] == "DONE"
    asked.keep({"undisturbed": list(before.values()), "passings": counts, "cases": results})
    spared = sorted(set(points) - {point for result in results for point in result["died"]})
    wrong = [point for result in results if not result["same"] for point in result["asked"]]
    n_violations = sum(len(result["violations"]) for result in results) + sum(len(result["violations"]) for result in before.values())
    n_kills = sum(len(result["asked"][point]) for result in results for point in result["died"])
    quick = asked.note()
    return [
        Figure(
            "points at which a process was killed",
            "points",
            sum(len(result["died"]) for result in results),
            target=len(points),
            note=asked.note(f"nobody died at {', '.join(spared)}" if spared else ""),
        ),
        Figure("kills", "kills", n_kills, note=quick),
        Figure(
            "points of homes in which the committed facts differ",
            "points",
            len(wrong),
            target=0,
            at_least=False,
            note=", ".join(wrong) or quick,
        ),
        Figure("violations of the contract", "violations", n_violations, target=0, at_least=False, note=quick),
    ]


def _moments(n: int) -> tuple[int, ...]:
    """The first, a middle and the last of so many passings; the first of a point that is passed after deaths only."""
    return tuple(sorted({1, (n + 1) // 2, n} - {0}))


def _groups(points: Sequence[str]) -> list[list[str]]:
    """Points by home: neighbours in different ones, and those with a driver of their own apart."""
    special = [[p for p in points if p in some] for some in (TIMING_POINTS, UPLOAD_POINTS)]
    plain = [p for p in points if p not in TIMING_POINTS + UPLOAD_POINTS]
    return [some for some in (*(plain[n::_HOMES] for n in range(_HOMES)), *special) if some]


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
