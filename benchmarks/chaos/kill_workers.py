"""RF-01: a random busy worker is killed every few seconds while a sweep runs. Every trial ends with one committed record.

A worker is the Ray process that supervises a slot; its trial's process dies with it. The same trials run without kills first.
"""

from __future__ import annotations

import os
import random
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from benchmarks.figures import Figure, Run
from sparsefleet.fleet.driver import DriverSettings, Event, submit
from sparsefleet.fleet.enqueue import enqueue
from sparsefleet.grid.load import load_grid
from sparsefleet.home import artifact_root
from sparsefleet.ledger import ArtifactStore, TrialRow, open_ledger
from sparsefleet.registry import catalog

GRID = """
name: chaos
dataset: digits
model: {{mlp: {{hidden: [64]}}}}
optimizer: {{sgd: {{lr: 0.1, momentum: 0.9}}}}
train: {{epochs: {epochs}, batch_size: 32}}
seeds: {seeds}
control_arms: []
axes:
  density: [0.1]
  method: [{{rewirer: set}}]
measure: {{level: none}}
"""


class Killer(threading.Thread):
    """Kills a busy worker of this process's Ray every ``every_s`` seconds until stopped."""

    def __init__(self, every_s: float, seed: int) -> None:
        super().__init__(daemon=True)
        self.kills = 0
        self._every_s, self._random, self._ended = every_s, random.Random(seed), threading.Event()

    def run(self) -> None:
        """The thread."""
        while not self._ended.wait(self._every_s):
            busy = [p for p in psutil.Process().children(recursive=True) if _name(p).startswith("ray::Supervisor.run")]
            if busy:
                self._random.choice(busy).kill()
                self.kills += 1

    def stop(self) -> None:
        """End it."""
        self._ended.set()
        self.join()


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


def run(home: Path, *, n_trials: int = 200, every_s: float | None = 3.0, seed: int = 0, epochs: int = 3) -> dict[str, Any]:
    """The figures of one sweep in an empty home; ``every_s`` None kills nobody."""
    os.environ["SPARSEFLEET_HOME"] = str(home)
    grid_file = home / "grid.yaml"
    grid_file.write_text(GRID.format(epochs=epochs, seeds=n_trials // 2))  # and as many twins
    plugins = catalog()
    sweep = enqueue(load_grid(str(grid_file), catalog=plugins), plugins, home, home / "data")
    committed: list[str] = []
    running: list[float] = []

    def hear(event: Event) -> None:
        if event.kind == "trial" and event.data["state"] == "RUNNING":
            running.append(time.monotonic())
        elif event.kind == "trial" and event.data["state"] != "PENDING":
            committed.append(event.data["key"])

    killer = Killer(every_s, seed) if every_s else None
    begun = time.monotonic()
    if killer:
        killer.start()
    try:
        row = submit(home, sweep, DriverSettings(data_root=home / "data"), hear)
    finally:
        if killer:
            killer.stop()
    wall_s = time.monotonic() - begun
    with open_ledger(home) as ledger:
        rows = list(ledger.trials(sweep))
    return {
        "state": row.state,
        "trials": row.counts["total"],
        "succeeded": row.counts.get("SUCCEEDED", 0),
        "lost": row.counts["total"] - len({key for key in committed if key}),
        "committed_twice": len(committed) - len(set(committed)),
        "problems": [problem for trial in rows for problem in problems(trial)],
        "kills": killer.kills if killer else 0,
        "ends": dict(Counter(a["end"] for trial in rows for a in trial.attempts)),
        "wall_s": round(wall_s, 1),
        "running_s": round(time.monotonic() - running[0], 1),
        "trial_s": round(sum((t.record or {}).get("wall_s", 0.0) for t in rows) / len(rows), 3),
    }


def problems(row: TrialRow) -> list[str]:
    """What is wrong with the history of one trial; nothing, if the contract holds."""
    found = []
    ends = [a["end"] for a in row.attempts]
    if ends.count("SUCCEEDED") != 1 or ends[-1] != "SUCCEEDED":
        found.append(f"{row.spec_id}: attempts ended {ends}")
    if row.record is None or row.record["attempt"] != row.attempt:
        found.append(f"{row.spec_id}: the record is of another attempt")
    store = ArtifactStore(artifact_root())
    with tempfile.TemporaryDirectory() as folder:
        for ref in (row.record or {}).get("artifacts", []):
            store.get(ref["sha256"], Path(folder) / "file")  # raises if it is absent or altered
    return found


def figures(asked: Run) -> list[Figure]:
    """What a sweep of 200 trials lost to a kill every 3 s, and how much longer it took than without."""
    n_trials = asked.pick(200, 20)
    result: dict[str, Any] = {}
    for name, every_s in [("baseline", None), ("chaos", 3.0)]:
        with tempfile.TemporaryDirectory(prefix="sparsefleet-chaos-") as folder:
            asked.say(f"{name}: {n_trials} trials")
            result[name] = run(Path(folder), n_trials=n_trials, every_s=every_s)
    asked.keep(result)
    chaos, quick = result["chaos"], asked.note()
    slower = chaos["running_s"] / result["baseline"]["running_s"]
    return [
        Figure("results", "trials", chaos["succeeded"], target=n_trials, note=asked.note(f"{chaos['kills']} workers killed")),
        Figure("results lost", "trials", chaos["lost"], target=0, at_least=False, note=quick),
        Figure("results committed twice", "trials", chaos["committed_twice"], target=0, at_least=False, note=quick),
        Figure("trials with a wrong history", "trials", len(chaos["problems"]), target=0, at_least=False, note=quick),
        Figure("time under kills", "s", chaos["running_s"], note=quick),
        Figure("time under kills over time without", "times", slower, target=2.0, at_least=False, note=quick),
    ]
