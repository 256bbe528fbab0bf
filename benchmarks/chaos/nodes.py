"""RF-05, RF-06, RF-07 and frozen-before: what happens to a sweep when nodes of its cluster are killed, frozen or cut in half.

The signals are real. The driver is attached to the first node, so the others are the ones that are hurt.
"""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.chaos.cluster import LIMIT_S, RESOURCES, Nodes, below, ending, is_ours, lifetime, scene, send_to
from benchmarks.chaos.history import violations
from benchmarks.chaos.sweep import Sweep
from benchmarks.figures import Figure, Run
from sparsefleet.fleet.history import read_history
from sparsefleet.ledger import TrialRow, open_ledger, read_ledger

_LONG = 120
"""Epochs of a trial that takes seconds: the one that is hit must not end in that moment."""


@dataclass(frozen=True)
class Hit:
    """The attempt that was running when a node was hit."""

    key: str
    attempt: int
    node: str


def busy_node(sweep: Sweep) -> str:
    """A node that is not the driver's and runs a trial that has just begun."""
    until = time.monotonic() + 120.0
    known = {(row.key, row.attempt) for row in sweep.rows() if row.state == "RUNNING"}
    while time.monotonic() < until:
        for row in sweep.rows():
            if row.state == "RUNNING" and row.node in ("node-1", "node-2") and (row.key, row.attempt) not in known:
                return str(row.node)
        time.sleep(0.05)
    raise RuntimeError(f"no trial runs on another node: {sweep.log}")


def _hit(sweep: Sweep, node: str) -> Hit:
    """What ran on a node when it was hit: on a busy machine the trial that was seen there may have given way to the next.

    Raises:
        RuntimeError: no trial had started there, or all had ended.
    """
    until = time.monotonic() + 30.0
    while time.monotonic() < until:
        for row in sweep.rows():
            started = {line["attempt"] for line in read_history(sweep.home, row.key) if line["event"] == "started"}
            for attempt in row.attempts:
                if attempt["node"] == node and attempt["end"] in (None, "LOST") and attempt["n"] in started:
                    return Hit(row.key, attempt["n"], node)
        time.sleep(0.05)
    raise RuntimeError(f"nothing ran on {node}: {sweep.log}")


def _until_given_up(sweep: Sweep, victim: Hit, begun: float, limit_s: float = 120.0) -> float:
    """Seconds since ``begun`` until the attempt has ended LOST and its trial waits again, or runs elsewhere."""
    while time.monotonic() - begun < limit_s:
        ended = _attempt(sweep, victim)["end"]
        if ended is not None:
            return time.monotonic() - begun if ended == "LOST" else limit_s
        time.sleep(0.05)
    return limit_s


def _trial(sweep: Sweep, victim: Hit) -> TrialRow:
    with read_ledger(sweep.home) as ledger:
        return ledger.trial(victim.key)


def _attempt(sweep: Sweep, victim: Hit) -> dict[str, Any]:
    found: dict[str, Any] = _trial(sweep, victim).attempts[victim.attempt - 1]
    return found


def _n_refused(sweep: Sweep, driver: subprocess.Popen[bytes], victim: Hit) -> int:
    """Of two results of the attempt that was given up, one while the next attempt runs and one when its trial has ended: how many are refused.

    While the next one runs, the attempt's number alone can refuse it.
    """
    return sum(_is_refused(sweep, driver, victim, state) for state in ("RUNNING", "SUCCEEDED"))


def _is_refused(sweep: Sweep, driver: subprocess.Popen[bytes], victim: Hit, state: str) -> bool:
    """Whether the ledger refuses a result of the given-up attempt once a later one has this state, and leaves the trial as it is."""
    until = time.monotonic() + LIMIT_S
    while True:
        is_over = driver.poll() is not None or time.monotonic() > until
        row = _trial(sweep, victim)
        if row.state == state and row.attempt > victim.attempt:
            break
        if is_over:
            return False
        time.sleep(0.05)
    with open_ledger(sweep.home) as ledger:
        record = next(other.record for other in ledger.trials(sweep.id, states=("SUCCEEDED",)))
        own = {"trial_key": row.key, "spec_id": row.spec_id, "spec": row.spec, "reason": "late"}
        taken = ledger.commit(victim.key, victim.attempt, {**(record or {}), **own})
    after = _trial(sweep, victim)
    return not taken and (after.state, after.attempt, after.record) == (row.state, row.attempt, row.record)


def _finished(sweep: Sweep, driver: subprocess.Popen[bytes], victim: Hit, n_trials: int, n_refused: int) -> dict[str, Any]:
    """What became of the sweep and of the trial that was hit."""
    with suppress(subprocess.TimeoutExpired):
        driver.wait(LIMIT_S)
    rows = sweep.rows()
    hit = next(row for row in rows if row.key == victim.key)
    told = read_history(sweep.home, victim.key)
    return {
        "exit": driver.poll(),
        "succeeded": sum(row.state == "SUCCEEDED" for row in rows),
        "lost": n_trials - sum(row.state == "SUCCEEDED" for row in rows),
        "committed": sum(a["end"] == "SUCCEEDED" for a in hit.attempts),
        "twice": sum(sum(a["end"] == "SUCCEEDED" for a in row.attempts) > 1 for row in rows),
        "violations": violations(sweep.home, sweep.id),
        "attempts": [[a["n"], a["node"], a["end"], a["t_s"], a["reason"]] for a in hit.attempts],
        "told": [[line["event"], line["attempt"], line["node"]] for line in told if line["event"] != "progress"],
        "refused": n_refused,
        "trial_s": median(a["t_s"] for row in rows for a in row.attempts if a["end"] == "SUCCEEDED"),
        "log": sweep.log[-2000:],
    }


def _common(result: dict[str, Any], note: str) -> list[Figure]:
    refused = "results of the lost attempt, given to the ledger while the next one ran and after it, that it refused"
    return [
        Figure(refused, "results", result["refused"], target=2, note=note),
        Figure("results lost", "trials", result["lost"], target=0, at_least=False, note=note),
        Figure("results committed twice", "trials", result["twice"], target=0, at_least=False, note=note),
        Figure("violations of the contract", "rows", len(result["violations"]), target=0, at_least=False, note=note),
    ]


def lost(asked: Run) -> list[Figure]:
    """RF-05: every process of a node is killed at once."""
    n_trials = asked.pick(12, 8)
    with scene(n_trials, epochs=_LONG) as (nodes, sweep, driver):
        doomed = {name: nodes.processes(name) for name in ("node-1", "node-2")}
        node = busy_node(sweep)
        asked.say(f"SIGKILL to all processes of {node}")
        begun = time.monotonic()
        send_to([*doomed[node], *below(lambda: nodes.processes(node))], signal.SIGKILL)
        victim = _hit(sweep, node)
        waited = _until_given_up(sweep, victim, begun)
        result = _finished(sweep, driver, victim, n_trials, _n_refused(sweep, driver, victim))
    asked.keep(result)
    return [
        Figure("lost node until its trial is requeued", "s", waited, target=10.0, at_least=False, note=asked.note()),
        *_common(result, asked.note()),
    ]


def frozen(asked: Run) -> list[Figure]:
    """RF-06: every process of a node is stopped, and goes on after a minute."""
    n_trials, frozen_s = asked.pick(36, 20), asked.pick(60.0, 40.0)
    with scene(n_trials, epochs=_LONG) as (nodes, sweep, driver):
        node = busy_node(sweep)
        stopped = nodes.processes(node)
        send_to(stopped, signal.SIGSTOP)
        begun = time.monotonic()
        stopped = list({p.pid: p for p in [*stopped, *nodes.processes(node)]}.values())
        send_to(stopped, signal.SIGSTOP)  # what was started meanwhile
        asked.say(f"SIGSTOP to all {len(stopped)} processes of {node}")
        victim = _hit(sweep, node)
        waited = _until_given_up(sweep, victim, begun)
        given_up = _attempt(sweep, victim)["ended"] or ""
        with ThreadPoolExecutor(1) as beside:  # the next attempt may run before the node thaws, or after
            n_refused = beside.submit(_n_refused, sweep, driver, victim)
            done_before = sweep.row().counts.get("SUCCEEDED", 0)
            time.sleep(max(0.0, frozen_s - (time.monotonic() - begun)))
            n_done = sweep.row().counts.get("SUCCEEDED", 0)
            placed = sum(a["node"] == node and a["started"] >= given_up for row in sweep.rows() for a in row.attempts)
            send_to(stopped, signal.SIGCONT)
            asked.say(f"SIGCONT; {n_done - done_before} trials ended since it was given up")
            result = _finished(sweep, driver, victim, n_trials, n_refused.result())
    asked.keep(result)
    return [
        Figure("frozen node until its trial is requeued", "s", waited, target=35.0, at_least=False, note=asked.note()),
        Figure("trials that were sent to the silent node", "trials", placed, target=0, at_least=False, note=asked.note()),
        Figure("trials that ended elsewhere while it was silent", "trials", n_done - done_before, target=1, note=asked.note()),
        Figure("trials that had not ended when it went on", "trials", n_trials - n_done, target=1, note=asked.note()),
        *_common(result, asked.note()),
    ]


def zombie(asked: Run) -> list[Figure]:
    """RF-07: the raylet of a node is killed; its workers live on."""
    n_trials = asked.pick(18, 10)
    with scene(n_trials, epochs=_LONG) as (nodes, sweep, driver):
        node = busy_node(sweep)
        workers = [p for p in nodes.processes(node) if is_ours(p)]
        asked.say(f"SIGKILL to the raylet of {node} alone; {len(workers)} processes of ours are below it")
        begun = time.monotonic()
        nodes.raylet(node).kill()
        alive = lifetime(workers)
        victim = _hit(sweep, node)
        waited = _until_given_up(sweep, victim, begun)
        result = _finished(sweep, driver, victim, n_trials, _n_refused(sweep, driver, victim))
    asked.keep({**result, "zombies_s": alive})
    logged = sum(event == "lost" and attempt == victim.attempt for event, attempt, _ in result["told"])
    return [
        Figure("commits of the zombie's trial", "commits", result["committed"], target=1, most=1, note=asked.note()),
        Figure("lines of its history that say that this attempt was lost", "lines", logged, target=1, most=1, note=asked.note()),
        Figure("raylet's death until its trial is requeued", "s", waited, target=35.0, at_least=False, note=asked.note()),
        Figure("supervisors, fork servers and trials that were left below it", "processes", len(workers), target=3, note=asked.note()),
        Figure("they lived on for", "s", alive, target=10.0, at_least=False, note=asked.note()),
        *_common(result, asked.note()),
    ]


def frozen_before(asked: Run) -> list[Figure]:
    """A node is frozen, and Ray does not know it yet, when a sweep is started: the others begin, nothing is sent there."""
    n_trials = asked.pick(16, 8)
    with tempfile.TemporaryDirectory(prefix="sparsefleet-nodes-") as folder, closing(Nodes()) as nodes:
        sweep = Sweep(Path(folder), n_trials // 2, more=RESOURCES)
        stopped = nodes.processes("node-2")
        send_to(stopped, signal.SIGSTOP)
        asked.say(f"SIGSTOP to all {len(stopped)} processes of node-2, then resume")
        begun = time.monotonic()
        with ending(sweep.driver("--address", nodes.address)) as driver:
            sweep.wait_for(1, driver, 240.0)
            first_s = time.monotonic() - begun
            with suppress(subprocess.TimeoutExpired):
                driver.wait(LIMIT_S)
        there = sum(a["node"] == "node-2" for row in sweep.rows() for a in row.attempts)
        succeeded, said, broken = sum(row.state == "SUCCEEDED" for row in sweep.rows()), sweep.log, violations(sweep.home, sweep.id)
    asked.keep({"exit": driver.poll(), "log": said[-2000:], "violations": broken})
    return [
        Figure("start of the driver until the first result", "s", first_s, target=60.0, at_least=False, note=asked.note()),
        Figure("it says which node is silent", "sentences", said.count("node-2 did not answer within 30 s"), target=1, note=asked.note()),
        Figure("trials that were sent there", "trials", there, target=0, at_least=False, note=asked.note()),
        Figure("results", "trials", succeeded, target=n_trials, note=asked.note()),
        Figure("violations of the contract", "rows", len(broken), target=0, at_least=False, note=asked.note()),
    ]
