"""Time of ``--help`` of every command, and time and memory of planning a grid of a million points, each in a process of its own.

Wall time and processor time are told; the best of the repetitions counts for the wall time, since what a neighbour adds is not ours.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import click

from benchmarks.figures import Figure, Run
from sparsefleet.cli.app import cli

HELP_S, PLAN_S, PLAN_MIB = 0.3, 1.0, 100.0

GRID = """
name: million
dataset: digits
model: {{mlp: {{hidden: [32]}}}}
optimizer: {{sgd: {{lr: 0.1}}}}
train: {{epochs: 1, batch_size: 64}}
method: {{rewirer: set}}
layer: csr
seeds: 10
axes:
  optimizer.sgd.lr: [{lrs}]
  density: [{densities}]
"""


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command of the tree, the root first."""
    yield path
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


def timed(arguments: tuple[str, ...], environment: dict[str, str]) -> dict[str, Any]:
    """One run: seconds of wall and processor time, and its own peak of memory."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "sparsefleet.cli", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    with process:
        assert process.stdout is not None
        output = process.stdout.read().decode(errors="replace")
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.perf_counter() - begun
    if process.returncode:
        raise SystemExit(f"sparsefleet {' '.join(arguments)} ended with {process.returncode}:\n{output[-2000:]}")
    return {"wall_s": wall_s, "cpu_s": used.ru_utime + used.ru_stime, "peak_mib": used.ru_maxrss / 1024, "output": output}


def plan(run: Run) -> list[Figure]:
    """Seconds and memory of planning a grid of a million points."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "SPARSEFLEET_HOME": folder}
        grid = Path(folder) / "million.yaml"
        lrs = ", ".join(f"{1e-6 * (k + 1):.6f}" for k in range(100))
        densities = ", ".join(f"{1e-4 * (k + 1):.4f}" for k in range(1000))
        grid.write_text(GRID.format(lrs=lrs, densities=densities))
        timed(("plan", str(grid)), environment)  # fills the catalogue's cache
        runs = [timed(("plan", str(grid)), environment) for _ in range(run.pick(6, 2))]
    if "1,000,000" not in runs[0]["output"]:
        raise SystemExit(f"the plan does not say a million:\n{runs[0]['output'][:500]}")
    run.keep(_without_output(runs))
    peak = max(one["peak_mib"] for one in runs)
    return [
        _figure("plan of 1,000,000 points", runs, PLAN_S),
        Figure("plan of 1,000,000 points: peak of memory", "MiB", peak, target=PLAN_MIB, at_least=False),
    ]


def helps(run: Run) -> list[Figure]:
    """Seconds of every command's ``--help``."""
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "SPARSEFLEET_HOME": folder}
        timed(("--help",), environment)  # fills the catalogue's cache
        for _ in range(run.pick(6, 2)):
            for path in commands():
                found.setdefault(" ".join(path) or "(root)", []).append(timed((*path, "--help"), environment))
    run.keep({name: _without_output(runs) for name, runs in found.items()})
    return [_figure(f"sparsefleet {name} --help", runs, HELP_S) for name, runs in found.items()]


def _without_output(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in one.items() if name != "output"} for one in runs]


def _figure(what: str, runs: list[dict[str, Any]], target: float) -> Figure:
    walls = [run["wall_s"] for run in runs]
    note = f"processor {median(run['cpu_s'] for run in runs):.2f} s"
    return Figure(what, "s", min(walls), (min(walls), max(walls)), target=target, at_least=False, note=note)
