"""Trials per second and overhead per trial, ours and Ray Tune's, measured in one run on this machine.

A trial here trains for zero steps, so all of its time is overhead: it builds the network from its spec through the registry, evaluates it,
and writes model, masks and record. Ours does that in a forked process of its own, stores the files by digest and commits to the ledger; Tune
does it in its worker, which keeps nothing beyond the folder. Beside it stands Tune with a trainable that does nothing at all (``empty``).
Every side runs in a new process with a local Ray of its own, several times in alternating order; figures are medians [lowest, highest],
ratios are taken within one repetition. The start of Ray is not part of the throughput; the time from the call to the first trial's start is
told beside it. Ray gives its workers a low priority, which costs Tune's trials more than ours where the machine has other work: taken away.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from benchmarks.figures import Figure, Run
from benchmarks.fleet.sides import SIDES

Rounds = dict[str, list[dict[str, Any]]]
SHARE = {"ours": 1.0, "ours-upload": 1.0, "tune": 0.04, "tune-empty": 0.04, "tune-reuse": 1.0, "tune-reuse-empty": 1.0}
"""Of the trials asked for, how many each side runs: what is slow is not run as often."""
_FEWEST = 8
_LIMIT_S = 900.0


def run_side(side: str, n_trials: int, cpus: int) -> dict[str, Any]:
    """The figures of one side, from a process of its own."""
    n = max(_FEWEST, 2 * round(n_trials * SHARE[side] / 2))
    command = [sys.executable, "-m", "benchmarks.fleet.sides", side, str(n), str(cpus)]
    load = os.getloadavg()[0]
    environment = {**os.environ, "RAY_worker_niceness": "0"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-2000:]}")
    figures: dict[str, Any] = {**json.loads(done.stdout.splitlines()[-1]), "load_before": load}
    print(f"  {side:16} {figures['trials']:4} trials  {figures['trials_per_s']:7.2f} /s  load {load:.1f}", file=sys.stderr, flush=True)
    return figures


def middle(what: str, unit: str, values: Sequence[float], **more: Any) -> Figure:
    """The median of the repetitions."""
    return Figure(what, unit, median(values), (min(values), max(values)), **more)


def figures_of(rounds: Rounds) -> list[Figure]:
    """What was found, with the targets."""
    found: list[Figure] = []
    for side, runs in rounds.items():
        target = 20.0 if side == "ours" else None
        n = f"{len(runs)} x {runs[0]['trials']} trials"
        found.append(middle(f"{side}: throughput", "trials/s", [r["trials_per_s"] for r in runs], target=target, note=n))
        found.append(middle(f"{side}: overhead per trial", "ms", [r["overhead_ms"] for r in runs]))
        found.append(middle(f"{side}: from the call to the first trial's start", "s", [r["first_start_s"] for r in runs]))
        found.append(middle(f"{side}: from the process's start to the first trial's", "s", [r["process_to_first_start_s"] for r in runs]))
    for side, target in (("tune", 30.0), ("tune-empty", 30.0), ("tune-reuse", 1.5), ("tune-reuse-empty", 1.5)):
        ratios = [a["trials_per_s"] / b["trials_per_s"] for a, b in zip(rounds["ours"], rounds[side], strict=True)]
        found.append(middle(f"ours over {side}", "times", ratios, target=target))
    return found


def figures(run: Run) -> list[Figure]:
    """Throughput and overhead of every side, and ours over each of Tune's."""
    n_trials, repetitions, cpus = run.pick(150, 20), run.pick(3, 1), 2
    rounds: Rounds = {side: [] for side in SIDES}
    for repetition in range(repetitions):
        order = list(rounds) if repetition % 2 == 0 else list(reversed(rounds))
        for side in order:
            rounds[side].append(run_side(side, n_trials, cpus))
    run.keep(rounds)
    return [replace(figure, note=run.note(figure.note)) for figure in figures_of(rounds)]
