"""Ten thousand trials: planned, queued, listed and compared. Nothing of it may grow faster than their number.

The ledger is made by really entering the grid and really committing 10,000 records and the timings of their configurations. They are those
of a sweep that ran on this machine just before, with other identities and figures, so that they have the size and the shape of real ones;
training 10,000 networks would show nothing more. Every command is timed as a process of its own, from its start to its end.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures import Figure, Run
from sparsefleet.ledger import Ledger, SweepLock, TrialRow, open_ledger
from sparsefleet.spawn import module_command

SIZES = (1_000, 3_000, 10_000)
_SEEDS = 10
_METHODS = ("set", "rigl", "static", "random-regrow", "itop-set")
_DENSITIES = 10
_IN_ALL = len(_METHODS) * _DENSITIES * _SEEDS + _SEEDS
"""Trials per learning rate: the sparse ones and their twins."""
_GRID = """
name: scale
dataset: digits
model: {{mlp: {{hidden: [64]}}}}
optimizer: {{sgd: {{lr: 0.1, momentum: 0.9}}}}
train: {{epochs: 3, batch_size: 32}}
seeds: {seeds}
layer: csr
control_arms: []
axes:
  density: [{densities}]
  optimizer.sgd.lr: [{rates}]
  method: [{methods}]
measure: {{level: {level}}}
"""
_ENQUEUE = """
import json, resource, sys, time
from pathlib import Path
from sparsefleet.fleet.enqueue import enqueue
from sparsefleet.grid.load import load_grid
from sparsefleet.registry import catalog
home = Path(sys.argv[1])
plugins = catalog()
begun = time.monotonic()
sweep = enqueue(load_grid(str(home / "grid.yaml"), catalog=plugins), plugins, home, home / "data")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"sweep": sweep, "s": time.monotonic() - begun, "peak_mib": peak}))
"""
_QUEUE = """
import json, resource, sys, time
from pathlib import Path
from sparsefleet.fleet.queue import TrialQueue
from sparsefleet.ledger import read_ledger
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begun = time.monotonic()
queue = TrialQueue(read_ledger(Path(sys.argv[1])).trials(sys.argv[2], with_record=False))
made = time.monotonic() - begun
begun = time.monotonic()
while shapes := queue.shapes():
    key = queue.take(shapes[0])
    queue.mark(key, "RUNNING")
    queue.done(key, "SUCCEEDED")
    assert not queue.stuck and queue.n_ready() + queue.n_open >= 0
taken = time.monotonic() - begun
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"n": len(queue.rows), "s": made, "taken_s": taken, "mib": (after - before) / 1024}))
"""


@contextmanager
def _home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sparsefleet-scale-") as folder:
        yield Path(folder)


def _write_grid(home: Path, n_rates: int, *, seeds: int = _SEEDS, methods: tuple[str, ...] = _METHODS, densities: int = _DENSITIES) -> None:
    (home / "grid.yaml").write_text(
        _GRID.format(
            seeds=seeds,
            densities=", ".join(f"{0.05 * (i + 1):g}" for i in range(densities)),
            rates=", ".join(f"{0.1 + i / 1000:g}" for i in range(n_rates)),
            methods=", ".join(f"{{rewirer: {name}}}" for name in methods),
            level="screen",
        )
    )


def _environment(home: Path) -> dict[str, str]:
    own = {"SPARSEFLEET_HOME": str(home), "SPARSEFLEET_DATA": str(home / "data"), "SPARSEFLEET_PICTURES": "off"}
    return {**os.environ, **own, "PYTHONDONTWRITEBYTECODE": "1"}


def _answer(home: Path, code: str, *arguments: str) -> dict[str, Any]:
    """What a script prints as JSON."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=_environment(home), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _command(home: Path, *words: str) -> tuple[float, str]:
    """Seconds of ``sparsefleet WORDS`` as a process, and what it printed."""
    begun = time.monotonic()
    done = subprocess.run(
        module_command("sparsefleet.cli", *words), env=_environment(home), cwd=home, capture_output=True, text=True, check=False
    )
    seconds = time.monotonic() - begun
    if done.returncode:
        raise SystemExit(f"sparsefleet {' '.join(words)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return seconds, done.stdout


def _rates(n_trials: int) -> int:
    return max(1, round(n_trials / _IN_ALL))


def _enqueued(home: Path, n_trials: int) -> dict[str, Any]:
    _write_grid(home, _rates(n_trials))
    return _answer(home, _ENQUEUE, str(home))


def _example(home: Path) -> dict[str, Any]:
    """A record of a dense and of a sparse trial, and the timing of the sparse one, from a sweep that runs here."""
    _write_grid(home, 1, seeds=1, methods=("set",), densities=1)
    sweep = _answer(home, _ENQUEUE, str(home))["sweep"]
    _command(home, "resume", sweep)
    with open_ledger(home) as ledger:
        records = {row.arm: row.record for row in ledger.trials(sweep)}
        timing = ledger.timings(sweep)[0]
        return {**records, "timing": timing, "samples": ledger.samples(str(timing.samples_ref))}


def _filled(home: Path, sweep: str, example: dict[str, Any]) -> None:
    """Commits a record for every trial and a timing for every configuration."""
    drawn = random.Random(0)
    with open_ledger(home) as ledger, SweepLock(home, sweep):
        rows = list(ledger.trials(sweep, with_record=False))
        for begin in range(0, len(rows), 500):
            with ledger.batch():
                for row in rows[begin : begin + 500]:
                    attempt = ledger.lease(row.key, sweep, "node-1")
                    assert attempt is not None
                    ledger.mark_running(row.key, attempt, "node-1")
                    assert ledger.commit(row.key, attempt, _varied(row, example["dense" if row.arm == "dense" else "sparse"], drawn))
        _time_all(ledger, sweep, rows, example)
        ledger.set_sweep_state(sweep, "DONE")


def _varied(row: TrialRow, record: dict[str, Any], drawn: random.Random) -> dict[str, Any]:
    """The example's record as this trial's: its identity, its request, and figures that differ."""
    test = round((0.95 if row.arm == "dense" else 0.6 + 0.3 * row.spec["density"] ** 0.5) * 360 + drawn.gauss(0, 4)) / 360
    accuracy = {**record["accuracy"], "test": test, "last_on_val": test - 0.01, "best_on_val": test}
    counts = {**record["counts"], "density_realised": row.spec["density"]}
    asked = {name: row.request[name] for name in ("code", "data") if name in row.request}
    curves = {name: {**curve, "values": [v + drawn.random() for v in curve["values"]]} for name, curve in record["curves"].items()}
    artifacts = [{**one, "sha256": f"{drawn.getrandbits(256):064x}"} for one in record["artifacts"]]
    told = {"accuracy": accuracy, "counts": counts, "curves": curves, "artifacts": artifacts, "wall_s": record["wall_s"] + drawn.random()}
    return {**record, "trial_key": row.key, "spec_id": row.spec_id, "spec": row.spec, **asked, **told}


def _time_all(ledger: Ledger, sweep: str, rows: list[TrialRow], example: dict[str, Any]) -> None:
    alike: dict[str, list[str]] = {}
    for row in rows:
        if row.arm != "dense":
            alike.setdefault(json.dumps({**row.spec, "seed": 0}, sort_keys=True), []).append(row.key)
    with ledger.batch():
        for number, keys in enumerate(alike.values()):
            name = f"{number:064x}"
            taken = [{**timing, "config_key": name} for timing in example["timing"].timings]
            ledger.commit_timing(sweep, name, keys, "SUCCEEDED", taken, samples=example["samples"])


def plan(run: Run) -> list[Figure]:
    """``plan`` of 1,000, 3,000 and 10,000 trials."""
    found = []
    with _home() as home:
        _command(home, "--help")  # the disk
        for n in SIZES[: run.pick(3, 1)]:
            _write_grid(home, _rates(n))
            _command(home, "plan", "grid.yaml")  # what is read once: the plugins' catalogue, the data's digest
            found.append((n, _command(home, "plan", "grid.yaml")[0]))
    run.keep(found)
    return _growing(run, "plan", found, limit_s=10.0)


def queue(run: Run) -> list[Figure]:
    """Entering 1,000, 3,000 and 10,000 trials in a ledger, and what the driver holds of them."""
    entered, held = [], []
    for n in SIZES[: run.pick(3, 1)]:
        with _home() as home:
            _enqueued(home, _IN_ALL)  # the data's digest
            found = _enqueued(home, n)
            run.say(f"{n} trials entered in {found['s']:.1f} s, {found['peak_mib']:.0f} MiB")
            entered.append((n, found["s"], found["peak_mib"]))
            held.append((n, _answer(home, _QUEUE, str(home), found["sweep"])))
    run.keep({"entered": entered, "held": held})
    n, last = held[-1]
    return [
        *_growing(run, "enqueue", [(n, s) for n, s, _ in entered], limit_s=15.0),
        Figure(f"enqueue of {n:,}: peak memory", "MiB", entered[-1][2], target=250, at_least=False, note=run.note()),
        Figure(f"the driver's queue of {n:,}: made in", "s", last["s"], target=2.0, at_least=False, note=run.note()),
        Figure(f"the driver's queue of {n:,}: every trial taken and ended", "s", last["taken_s"], target=2.0, at_least=False),
        Figure(f"the driver's queue of {n:,}: memory", "MiB", last["mib"], target=50, at_least=False, note=run.note()),
    ]


def _growing(run: Run, what: str, found: list[tuple[int, float]], limit_s: float) -> list[Figure]:
    """Seconds by number of trials, and how much longer the last took than in proportion."""
    figures = [
        Figure(f"{what} of {n:,} trials", "s", s, note=run.note(), **({"target": limit_s, "at_least": False} if n == SIZES[-1] else {}))
        for n, s in found
    ]
    if len(found) > 1:
        (few, few_s), (many, many_s) = found[-2], found[-1]
        grown = (many_s / few_s) / (many / few)
        figures.append(Figure(f"{what}: {many:,} against {few:,} trials, over linear", "times", grown, target=1.3, at_least=False))
    return figures


@contextmanager
def _full(run: Run) -> Iterator[tuple[Path, str]]:
    """A home with the finished sweep."""
    with _home() as home:
        run.say("one sweep for its records")
        other = home / "example"
        other.mkdir()
        example = _example(other)
        n = run.pick(SIZES[-1], SIZES[0])
        run.say(f"{n} trials entered and committed")
        sweep = _enqueued(home, n)["sweep"]
        _filled(home, sweep, example)
        yield home, sweep


def _timed(run: Run, home: Path, *words: str) -> tuple[float, tuple[float, float]]:
    """Median, lowest and highest of three runs as whole processes; the first is not among them."""
    _command(home, *words)
    times = [_command(home, *words)[0] for _ in range(run.pick(3, 1))]
    run.say(f"sparsefleet {' '.join(words)}: {median(times):.2f} s")
    return median(times), (min(times), max(times))


def listed(run: Run) -> list[Figure]:
    """``status`` and ``compare`` of 10,000 finished trials, as whole processes."""
    with _full(run) as (home, sweep):
        n_bytes = sum(file.stat().st_size for file in home.glob("ledger.db*"))
        run.say(f"the ledger holds {n_bytes / 2**20:.0f} MiB")
        commands = {"status-10000": [("status",), ("status", sweep, "--trials"), ("status", "--json")]}
        commands["compare-10000"] = [("compare",), ("compare", "--json"), ("compare", sweep, "--by", "density")]
        figures = []
        for words in commands[run.id]:
            value, spread = _timed(run, home, *words)
            shown = " ".join(word for word in words if word != sweep)
            figures.append(Figure(f"{shown}, whole process", "s", value, spread, target=3.0, at_least=False, note=run.note()))
        return figures
