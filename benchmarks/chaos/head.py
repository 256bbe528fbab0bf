"""The head of the cluster is killed or frozen: the driver ends with a message, and the sweep goes on elsewhere or later."""

from __future__ import annotations

import subprocess
import time
from contextlib import closing, suppress
from typing import Any

import psutil

from benchmarks.chaos.cluster import LIMIT_S, Nodes, ending, is_ours, lifetime, scene
from benchmarks.chaos.history import violations
from benchmarks.chaos.nodes import busy_node
from benchmarks.chaos.sweep import Sweep
from benchmarks.figures import Figure, Run


def head(asked: Run) -> list[Figure]:
    """The head is killed: the driver ends with a message, no trial runs on, and another cluster finishes the sweep."""
    n_trials = asked.pick(20, 10)
    with scene(n_trials, epochs=30) as (nodes, sweep, driver):
        busy_node(sweep)
        ours = [p for name in nodes.names for p in nodes.processes(name) if is_ours(p)]
        ours += [p for p in psutil.Process(driver.pid).children(recursive=True) if is_ours(p)]
        asked.say(f"SIGKILL to the global control store; {len(ours)} supervisors, fork servers and trials run")
        nodes.head().kill()
        ended = _end_without_head(sweep, driver)
        left_s = lifetime(ours, 90.0)
        with closing(Nodes()) as second:
            result = _resumed(sweep, second.address)
    asked.keep({**ended, **result})
    return [
        *_told_without_head(ended, 30.0, asked),
        Figure("supervisors and trials lived on after it for", "s", left_s, target=15.0, at_least=False, note=asked.note()),
        *_told_resumed(result, "results after resume on another cluster", n_trials, asked),
    ]


def head_frozen(asked: Run) -> list[Figure]:
    """The head is stopped and its port still takes connections: the driver ends with a message, and goes on when the head does."""
    n_trials = asked.pick(60, 48)  # enough for the half minute in which a silent head is waited for
    with scene(n_trials, epochs=60) as (nodes, sweep, driver):
        busy_node(sweep)
        asked.say("SIGSTOP to the global control store")
        nodes.head().suspend()
        ended = _end_without_head(sweep, driver)
        nodes.head().resume()
        asked.say("SIGCONT")
        result = _resumed(sweep, nodes.address)
    asked.keep({**ended, **result})
    return [
        *_told_without_head(ended, 60.0, asked),
        *_told_resumed(result, "results after resume on the same cluster, thawed", n_trials, asked),
    ]


def _end_without_head(sweep: Sweep, driver: subprocess.Popen[bytes]) -> dict[str, Any]:
    """How the driver ends whose head has just been taken away."""
    begun = time.monotonic()
    with suppress(subprocess.TimeoutExpired):
        driver.wait(120.0)
    said = sweep.log
    named = f"sparsefleet resume {sweep.id}" in said and "Traceback" not in said
    return {
        "ended_s": time.monotonic() - begun,
        "code": driver.poll(),
        "named": int(named),
        "said": said[-2000:],
        "broken": violations(sweep.home, sweep.id),
    }


def _resumed(sweep: Sweep, address: str) -> dict[str, Any]:
    """What a second driver makes of it."""
    with ending(sweep.driver("--address", address)) as again, suppress(subprocess.TimeoutExpired):
        again.wait(LIMIT_S)
    succeeded = sum(row.state == "SUCCEEDED" for row in sweep.rows())
    return {"second": again.poll(), "succeeded": succeeded, "violations": violations(sweep.home, sweep.id), "log": sweep.log[-2000:]}


def _told_without_head(ended: dict[str, Any], limit_s: float, asked: Run) -> list[Figure]:
    return [
        Figure("head's end until the driver has ended", "s", ended["ended_s"], target=limit_s, at_least=False, note=asked.note()),
        Figure("its exit code", "code", ended["code"], target=4, most=4, note=asked.note()),
        Figure("one message that names the command to go on", "messages", ended["named"], target=1, note=asked.note()),
        Figure("violations of the contract then", "rows", len(ended["broken"]), target=0, at_least=False, note=asked.note()),
    ]


def _told_resumed(result: dict[str, Any], what: str, n_trials: int, asked: Run) -> list[Figure]:
    return [
        Figure(what, "trials", result["succeeded"], target=n_trials, note=asked.note()),
        Figure("violations of the contract", "rows", len(result["violations"]), target=0, at_least=False, note=asked.note()),
    ]
