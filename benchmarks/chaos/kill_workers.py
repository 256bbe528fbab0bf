"""RF-01: a random busy worker is killed every few seconds while a sweep runs. Every trial ends with one committed record.

    python -m benchmarks.chaos.kill_workers [--trials 200] [--every 3] [--seed 0] [--baseline] [--json PATH]

A worker is the Ray process that supervises a slot; its trial's process dies with it. Prints its figures; exits with 1 if a trial was lost,
committed twice or lacks a file. ``--baseline`` runs the same trials without kills first.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from benchmarks.figures import Figure, tell
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


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--every", type=float, default=3.0, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--baseline", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures with the machine's fingerprint here")
    asked = parser.parse_args()
    result: dict[str, Any] = {}
    for name, every_s in [("baseline", None), ("chaos", asked.every)] if asked.baseline else [("chaos", asked.every)]:
        with tempfile.TemporaryDirectory(prefix="sparsefleet-chaos-") as folder:
            result[name] = run(Path(folder), n_trials=asked.trials, every_s=every_s, seed=asked.seed)
    chaos, baseline = result["chaos"], result.get("baseline")
    found = [
        Figure("results", "trials", chaos["succeeded"], target=asked.trials, note=f"{chaos['kills']} workers killed"),
        Figure("results lost", "trials", chaos["lost"], target=0, at_least=False),
        Figure("results committed twice", "trials", chaos["committed_twice"], target=0, at_least=False),
        Figure("trials with a wrong history", "trials", len(chaos["problems"]), target=0, at_least=False),
        Figure("time under kills", "s", chaos["running_s"]),
        Figure("time without", "s", baseline["running_s"] if baseline else None, note="" if baseline else "--baseline"),
    ]
    options = {"trials": asked.trials, "every_s": asked.every, "seed": asked.seed}
    return tell("chaos", found, options=options, raw=result, path=asked.json)


if __name__ == "__main__":
    sys.exit(main())
