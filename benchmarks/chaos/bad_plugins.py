"""RF-08, RF-09, RF-10 and RF-16: whatever a plugin does, its trial ends in the right state and every other trial ends well.

The plugin is ``nasty.py`` beside this file; the sweeps run in a driver process of their own, as a user's do.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.chaos.history import violations
from benchmarks.chaos.sweep import Sweep, command_of, gone
from benchmarks.figures import Figure, Run
from sparsefleet.ledger import TrialRow
from sparsefleet.spawn import module_command

NASTY = Path(__file__).parent / "nasty.py"
STATES = {
    "raise": ("PLUGIN_ERROR", "ValueError: the idea was wrong"),
    "unpicklable": ("PLUGIN_ERROR", "Unpicklable"),
    "exit-0": ("POISONED", "exit code 0"),
    "exit-3": ("POISONED", "exit code 3"),
    "os-exit": ("POISONED", "exit code 0"),
    "segfault": ("POISONED", "SIGSEGV"),
    "abort": ("POISONED", "SIGABRT"),
    "kill-self": ("POISONED", "SIGKILL"),
    "interrupt": ("PLUGIN_ERROR", "KeyboardInterrupt"),
    "fork-bomb": ("POISONED", "processes at once"),
    "close-files": ("POISONED", "without a result"),
    "hold-gil": ("TIMEOUT", "killed after"),
}
"""How each kind of misbehaviour ends, and what the reason says of it."""
HANGS = ("spin", "hold-gil", "swallow")
LIMIT_S = 5.0
_NETWORK = ("model.safetensors", "masks.safetensors")


@contextmanager
def sweep_of(methods: Sequence[str], n_seeds: int = 1, **more: Any) -> Iterator[Sweep]:
    """A sweep of these methods in a home of its own, with the nasty plugin at hand."""
    with tempfile.TemporaryDirectory(prefix="sparsefleet-chaos-", ignore_cleanup_errors=True) as folder:
        yield Sweep(Path(folder), n_seeds, methods=", ".join(methods), plugins=[NASTY], **more)


def nasty(how: str, step: int = 2) -> str:
    """A method that misbehaves so."""
    return f"{{rewirer: {{nasty: {{how: {how}, step: {step}}}}}}}"


def good(number: int) -> str:
    """A method that behaves; another one for every number."""
    return f"{{rewirer: {{set: {{every: {3 + number}}}}}}}"


def driven(sweep: Sweep, *flags: str, limit_s: float = 400.0) -> int:
    """The exit code of a driver that runs the sweep to its end.

    Raises:
        RuntimeError: it could not: Ray did not start, or the driver itself is broken.
    """
    code = sweep.driver(*flags).wait(limit_s)
    if code not in (0, 5):
        raise RuntimeError(f"the driver ended with {code}:\n{sweep.log[-2000:]}")
    return code


def how_of(row: TrialRow) -> str:
    """How this trial misbehaves; empty for a good one."""
    rewirer = row.spec["method"]["rewirer"]
    return str(rewirer["params"]["how"]) if rewirer and rewirer["name"] == "nasty" else ""


def rewirer_of(row: TrialRow) -> str:
    """Its name; empty without one."""
    return str((row.spec["method"]["rewirer"] or {"name": ""})["name"])


def step_named(row: TrialRow) -> int:
    """The step that a diverged trial's reason names; far away if none."""
    found = re.search(r"at step (\d+)", row.reason or "")
    return int(found[1]) if found else 1 << 30


def compared(sweep: Sweep, *flags: str) -> str:
    """What ``sparsefleet compare`` prints of the sweep."""
    command = module_command("sparsefleet.cli", "compare", sweep.id, *flags)
    environment = {**sweep.environment, "COLUMNS": "200"}
    return subprocess.run(command, env=environment, cwd=sweep.home, capture_output=True, text=True, check=True).stdout


def counts_as_chance(line: dict[str, Any]) -> bool:
    """Whether the two diverged seeds of a row of ``compare --json`` count as chance in its mean: a tenth, for ten digits."""
    by_seed = line["accuracy_by_seed"]
    return by_seed[:2] == [0.1, 0.1] and abs(line["accuracy"] - sum(by_seed) / len(by_seed)) < 1e-12


def attempt_s(attempt: dict[str, Any]) -> float:
    """Wall seconds from the lease of an attempt to its end."""
    begun, ended = (datetime.fromisoformat(attempt[name]) for name in ("started", "ended"))
    return (ended - begun).total_seconds()


def mixed(asked: Run) -> list[Figure]:
    """RF-09: twelve kinds of misbehaviour among good trials."""
    n_good = asked.pick(50, 12)
    kinds = list(STATES)
    methods = [good(n) for n in range(n_good - 1)]  # the last good one is the dense twin
    for place, how in enumerate(kinds):
        methods.insert(place * len(methods) // len(kinds), nasty(how))
    with sweep_of(methods, epochs=1, more="limits: {timeout_s: 8}") as sweep:
        code = driven(sweep)
        rows, left, broken = sweep.rows(), gone(sweep.home), violations(sweep.home, sweep.id)
    ended = {how_of(row): (row.state, row.reason or "") for row in rows if how_of(row)}
    wrong = [f"{how}: {ended[how]}" for how, (state, word) in STATES.items() if ended[how][0] != state or word not in ended[how][1]]
    asked.keep({"ended": ended, "exit": code, "left": [command_of(p) for p in left]})
    n_well = sum(row.state == "SUCCEEDED" for row in rows if not how_of(row))
    text = asked.note("; ".join(wrong))
    return [
        Figure("good trials that ended well", "trials", n_well, target=n_good, note=asked.note()),
        Figure("kinds of misbehaviour in their right state", "of 12", len(kinds) - len(wrong), target=len(kinds), note=text),
        Figure("the driver's exit code", "(5: trials failed)", code, target=5, most=5, note=asked.note()),
        Figure("processes left", "processes", len(left), target=0, at_least=False, note=asked.note()),
        Figure("violations of the contract", "violations", len(broken), target=0, at_least=False, note=asked.note("; ".join(broken[:3]))),
    ]


def hangs(asked: Run) -> list[Figure]:
    """RF-08: a loop in Python, one in C that holds the GIL, one that swallows every exception; each with a stubborn child process."""
    with sweep_of([nasty(how) for how in HANGS], asked.pick(2, 1), epochs=1, more=f"limits: {{timeout_s: {LIMIT_S:g}}}") as sweep:
        code = driven(sweep)
        rows, left = sweep.rows(), gone(sweep.home)
    hung = [row for row in rows if how_of(row)]
    seconds = [attempt_s(attempt) for row in hung for attempt in row.attempts]
    n_timeout = sum(row.state == "TIMEOUT" and len(row.attempts) == 1 for row in hung)
    asked.keep({"seconds": seconds, "exit": code, "left": [command_of(p) for p in left]})
    return [
        Figure("hanging trials that ended TIMEOUT at their first attempt", "trials", n_timeout, target=len(hung), note=asked.note()),
        Figure("from the start of a hanging trial to its end, at most", "s", max(seconds), target=LIMIT_S + 5, at_least=False),
        Figure("the same, median", "s", median(seconds), note=f"limit {LIMIT_S:g} s"),
        Figure("processes left", "processes", len(left), target=0, at_least=False),
    ]


def poison(asked: Run) -> list[Figure]:
    """RF-10: before every good trial one that ruins its process; the good ones' networks and accuracies are those of a sweep without."""
    n_good = asked.pick(20, 3)
    clean, _ = results([good(n) for n in range(n_good)])
    methods = [method for n in range(n_good) for method in (nasty("poison", step=n + 1), good(n))]
    with tempfile.TemporaryDirectory() as marks:
        poisoned, ends = results(methods, "--max-parallel", "1", environment={"POISON_MARKS": marks})
        n_acted = sum(mark.read_text() == "done" for mark in Path(marks).iterdir())
    same = sum(poisoned.get(key) == result for key, result in clean.items())
    n_ended = sum(state not in ("SUCCEEDED", "PENDING", "CANCELLED") for state, _ in ends)
    asked.keep({"differ": [key for key in clean if poisoned.get(key) != clean[key]], "ends": ends})
    return [
        Figure("good trials with the bits of the clean sweep", "trials", same, target=n_good + 1, note=asked.note("one of them dense")),
        Figure("poisonous trials that acted: the poison wrote so, last", "trials", n_acted, target=n_good, note=asked.note()),
        Figure("poisonous trials that did not end well", "trials", n_ended, target=n_good, note=asked.note()),
    ]


def results(methods: Sequence[str], *flags: str, **more: Any) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """By trial key: digests of the network and the accuracy of every good trial that succeeded; state and reason of every nasty one."""
    with sweep_of(methods, epochs=1, **more) as sweep:
        driven(sweep, *flags)
        rows = sweep.rows()
    found = {}
    for row in rows:
        if not how_of(row) and row.record and row.state == "SUCCEEDED":
            digests = {a["name"]: a["sha256"] for a in row.record["artifacts"] if a["name"] in _NETWORK}
            found[row.key] = [digests, row.record["accuracy"], row.record["curves"]]
    return found, [(row.state, row.reason or "") for row in rows if how_of(row)]


def not_a_number(asked: Run) -> list[Figure]:
    """RF-16: 10 of 50 trials get NaN weights at some step; each ends there, and is compared at chance accuracy."""
    steps = (4, 9, 10, 17, 21)[: asked.pick(5, 2)]
    methods = [*(good(n) for n in range(asked.pick(4, 1))), *(f"{{rewirer: {{blown: {{step: {step}, seeds: 2}}}}}}" for step in steps)]
    with sweep_of(methods, 5, epochs=1) as sweep:
        code = driven(sweep)
        rows, table = sweep.rows(), compared(sweep)
        lines = json.loads(compared(sweep, "--json"))["rows"]
    blown = [row for row in rows if rewirer_of(row) == "blown"]
    diverged = [row for row in blown if row.spec["seed"] < 2]
    off = [abs(step_named(row) - row.spec["method"]["rewirer"]["params"]["step"]) for row in diverged]
    wrong_means = [line["accuracy"] for line in lines if line["n_diverged"] and not counts_as_chance(line)]
    asked.keep({"exit": code, "reasons": sorted({row.reason or "" for row in diverged}), "table": table})
    n_well = sum(row.state == "SUCCEEDED" for row in rows if row not in diverged)
    return [
        Figure("trials that ended DIVERGED", "trials", sum(row.state == "DIVERGED" for row in diverged), target=2 * len(steps)),
        Figure("from the NaN to the step that the trial names, at most", "steps", max(off), target=1, at_least=False),
        Figure("other trials that ended well", "trials", n_well, target=len(rows) - 2 * len(steps), note=asked.note()),
        Figure("rows of compare with n=5, 2 diverged", "rows", table.count("n=5, 2 diverged"), target=len(steps)),
        Figure("rows whose mean does not count them as chance", "rows", len(wrong_means), target=0, at_least=False),
        Figure("the driver's exit code (a divergence is a result)", "", code, target=0, most=0),
    ]
