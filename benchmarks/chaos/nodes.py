"""RF-05, RF-06, RF-07 and the loss of the head: what happens to a sweep when nodes of its cluster are killed, frozen or cut in half.

The cluster is one of real Ray nodes on this machine, each with a raylet and workers of its own; the signals are real. The driver is attached
to the first node, so the others are the ones that are hurt.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chaos.history import violations
from benchmarks.chaos.sweep import Sweep
from benchmarks.figures import Figure, Run
from sparsefleet.fleet.history import read_history
from sparsefleet.ledger import open_ledger

_NODES = 3
_RESOURCES = "resources: {cpus: 1}"
_STORE_BYTES = 100 << 20
_LIMIT_S = 500.0
_LONG = 120
"""Epochs of a trial that takes seconds: the one that is hit must not end in that moment."""


class Nodes:
    """Three Ray nodes of one CPU; the first has the head and the driver."""

    def __init__(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        self._cluster: Any = Cluster()
        self._nodes = [
            self._cluster.add_node(num_cpus=1, include_dashboard=False, node_name=f"node-{n}", object_store_memory=_STORE_BYTES)
            for n in range(_NODES)
        ]

    @property
    def address(self) -> str:
        """For ``--address``."""
        return str(self._cluster.address)

    def raylet(self, name: str) -> psutil.Process:
        """Ray's own process of a node; everything else there is below it."""
        return psutil.Process(self._nodes[int(name.partition("-")[2])].all_processes["raylet"][0].process.pid)

    def processes(self, name: str) -> list[psutil.Process]:
        """The raylet, its workers, their fork servers and their trials."""
        raylet = self.raylet(name)
        return [raylet, *raylet.children(recursive=True)]

    def head(self) -> psutil.Process:
        """The global control store."""
        return psutil.Process(self._nodes[0].all_processes["gcs_server"][0].process.pid)

    def close(self) -> None:
        """End all, what is stopped or was cut off from its raylet with it."""
        everything = [p for n in range(_NODES) for p in _below(lambda n=n: self.processes(f"node-{n}"))]
        everything += _below(lambda: [self.head()])
        _signal(everything, signal.SIGCONT)
        self._cluster.shutdown()
        _signal(everything, signal.SIGKILL)


@contextmanager
def _scene(n_trials: int, epochs: int) -> Iterator[tuple[Nodes, Sweep, subprocess.Popen[bytes]]]:
    """A cluster, a sweep on it that has ended some trials, and its driver."""
    with tempfile.TemporaryDirectory(prefix="sparsefleet-nodes-") as folder:
        sweep = Sweep(Path(folder), n_trials // 2, epochs=epochs, more=_RESOURCES)
        with _running(Nodes()) as nodes, _ended(sweep.driver("--address", nodes.address)) as driver:
            sweep.wait_for(3, driver, 240.0)
            if driver.poll() is not None:
                raise RuntimeError(f"the driver ended early: {sweep.log}")
            yield nodes, sweep, driver


@contextmanager
def _running(nodes: Nodes) -> Iterator[Nodes]:
    """Closed afterwards."""
    try:
        yield nodes
    finally:
        nodes.close()


@contextmanager
def _ended(driver: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Killed afterwards, if it lives."""
    try:
        yield driver
    finally:
        if driver.poll() is None:
            driver.kill()
        driver.wait()


@dataclass(frozen=True)
class Hit:
    """The attempt that was running when a node was hit."""

    key: str
    attempt: int
    node: str


def _busy_node(sweep: Sweep) -> str:
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
    """What ran on a node when it was hit: on a busy machine the trial that was seen there may have given way to the next."""
    until = time.monotonic() + 30.0
    while time.monotonic() < until:
        for row in sweep.rows():
            for attempt in row.attempts:
                if attempt["node"] == node and attempt["end"] in (None, "LOST"):
                    return Hit(row.key, attempt["n"], node)
        time.sleep(0.05)
    raise RuntimeError(f"nothing ran on {node}: {sweep.log}")


def _until_given_up(sweep: Sweep, victim: Hit, begun: float, limit_s: float = 120.0) -> float:
    """Seconds since ``begun`` until the attempt has ended LOST and its trial waits again, or runs elsewhere."""
    while time.monotonic() - begun < limit_s:
        row = next(row for row in sweep.rows() if row.key == victim.key)
        ended = row.attempts[victim.attempt - 1]["end"]
        if ended is not None:
            return time.monotonic() - begun if ended == "LOST" else limit_s
        time.sleep(0.05)
    return limit_s


def _finished(sweep: Sweep, driver: subprocess.Popen[bytes], victim: Hit, n_trials: int) -> dict[str, Any]:
    """What became of the sweep and of the trial that was hit."""
    with suppress(subprocess.TimeoutExpired):
        driver.wait(_LIMIT_S)
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
        "attempts": [[a["n"], a["node"], a["end"], a["reason"]] for a in hit.attempts],
        "told": [[line["event"], line["attempt"], line["node"]] for line in told if line["event"] != "progress"],
        "fenced": _fenced(sweep, victim),
        "log": sweep.log[-2000:],
    }


def _fenced(sweep: Sweep, victim: Hit) -> int:
    """1 if the ledger refuses the record of the attempt that was given up, and what is committed stays as it is."""
    before = {row.key: (row.attempt, row.record) for row in sweep.rows()}
    record = before[victim.key][1]
    assert record is not None
    with open_ledger(sweep.home) as ledger:
        taken = ledger.commit(victim.key, victim.attempt, {**record, "reason": "late"})
    return int(not taken and {row.key: (row.attempt, row.record) for row in sweep.rows()} == before)


def _common(result: dict[str, Any], note: str) -> list[Figure]:
    return [
        Figure("a result of the lost attempt, given to the ledger again, refused", "results", result["fenced"], target=1, note=note),
        Figure("results lost", "trials", result["lost"], target=0, at_least=False, note=note),
        Figure("results committed twice", "trials", result["twice"], target=0, at_least=False, note=note),
        Figure("violations of the contract", "rows", len(result["violations"]), target=0, at_least=False, note=note),
    ]


def lost(asked: Run) -> list[Figure]:
    """RF-05: every process of a node is killed at once."""
    n_trials = asked.pick(12, 8)
    with _scene(n_trials, epochs=_LONG) as (nodes, sweep, driver):
        doomed = {name: nodes.processes(name) for name in ("node-1", "node-2")}
        node = _busy_node(sweep)
        asked.say(f"SIGKILL to all processes of {node}")
        begun = time.monotonic()
        _signal([*doomed[node], *_below(lambda: nodes.processes(node))], signal.SIGKILL)
        victim = _hit(sweep, node)
        waited = _until_given_up(sweep, victim, begun)
        result = _finished(sweep, driver, victim, n_trials)
    asked.keep(result)
    return [
        Figure("lost node until its trial is requeued", "s", waited, target=10.0, at_least=False, note=asked.note()),
        *_common(result, asked.note()),
    ]


def frozen(asked: Run) -> list[Figure]:
    """RF-06: every process of a node is stopped, and goes on after a minute."""
    n_trials, frozen_s = asked.pick(36, 20), asked.pick(60.0, 40.0)
    with _scene(n_trials, epochs=_LONG) as (nodes, sweep, driver):
        node = _busy_node(sweep)
        stopped = nodes.processes(node)
        _signal(stopped, signal.SIGSTOP)
        begun = time.monotonic()
        stopped = list({p.pid: p for p in [*stopped, *nodes.processes(node)]}.values())
        _signal(stopped, signal.SIGSTOP)  # what was started meanwhile
        asked.say(f"SIGSTOP to all {len(stopped)} processes of {node}")
        victim = _hit(sweep, node)
        waited = _until_given_up(sweep, victim, begun)
        done_before = sweep.row().counts.get("SUCCEEDED", 0)
        time.sleep(max(0.0, frozen_s - (time.monotonic() - begun)))
        while_silent = sweep.row().counts.get("SUCCEEDED", 0) - done_before
        placed = sum(a["node"] == node and a["end"] is None for row in sweep.rows() for a in row.attempts)
        _signal(stopped, signal.SIGCONT)
        asked.say(f"SIGCONT; {while_silent} trials ended since it was given up")
        result = _finished(sweep, driver, victim, n_trials)
    asked.keep({**result, "while_silent": while_silent})
    return [
        Figure("frozen node until its trial is requeued", "s", waited, target=35.0, at_least=False, note=asked.note()),
        Figure("trials that were sent to the silent node", "trials", placed, target=0, at_least=False, note=asked.note()),
        Figure("trials that ended elsewhere while it was silent", "trials", while_silent, target=1, note=asked.note()),
        *_common(result, asked.note()),
    ]


def zombie(asked: Run) -> list[Figure]:
    """RF-07: the raylet of a node is killed; its workers live on."""
    n_trials = asked.pick(18, 10)
    with _scene(n_trials, epochs=_LONG) as (nodes, sweep, driver):
        node = _busy_node(sweep)
        raylet = nodes.raylet(node)
        workers = [p for p in raylet.children(recursive=True) if _is_ours(p)]
        asked.say(f"SIGKILL to the raylet of {node} alone; {len(workers)} processes of ours are below it")
        begun = time.monotonic()
        raylet.kill()
        alive = _lifetime(workers)
        victim = _hit(sweep, node)
        waited = _until_given_up(sweep, victim, begun)
        result = _finished(sweep, driver, victim, n_trials)
    asked.keep({**result, "zombies_s": alive})
    logged = sum(event in ("lost", "late") and attempt == victim.attempt for event, attempt, _ in result["told"])
    return [
        Figure("commits of the zombie's trial", "commits", result["committed"], target=1, most=1, note=asked.note()),
        Figure("lines about the zombie in its trial's history", "lines", logged, target=1, note=asked.note()),
        Figure("raylet's death until its trial is requeued", "s", waited, target=35.0, at_least=False, note=asked.note()),
        Figure("supervisors, fork servers and trials that were left below it", "processes", len(workers), target=3, note=asked.note()),
        Figure("they lived on for", "s", alive, target=10.0, at_least=False, note=asked.note()),
        *_common(result, asked.note()),
    ]


def frozen_before(asked: Run) -> list[Figure]:
    """A node is frozen, and Ray does not know it yet, when a sweep is started: the others begin, nothing is sent there."""
    n_trials = asked.pick(16, 8)
    with tempfile.TemporaryDirectory(prefix="sparsefleet-nodes-") as folder, _running(Nodes()) as nodes:
        sweep = Sweep(Path(folder), n_trials // 2, more=_RESOURCES)
        stopped = nodes.processes("node-2")
        _signal(stopped, signal.SIGSTOP)
        asked.say(f"SIGSTOP to all {len(stopped)} processes of node-2, then resume")
        begun = time.monotonic()
        with _ended(sweep.driver("--address", nodes.address)) as driver:
            sweep.wait_for(1, driver, 240.0)
            first_s = time.monotonic() - begun
            with suppress(subprocess.TimeoutExpired):
                driver.wait(_LIMIT_S)
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


def head(asked: Run) -> list[Figure]:
    """The head is killed: the driver ends with a message, no trial runs on, and another cluster finishes the sweep."""
    n_trials = asked.pick(20, 10)
    with _scene(n_trials, epochs=30) as (nodes, sweep, driver):
        _busy_node(sweep)
        ours = [p for n in range(_NODES) for p in nodes.processes(f"node-{n}") if _is_ours(p)]
        ours += [p for p in psutil.Process(driver.pid).children(recursive=True) if _is_ours(p)]
        asked.say(f"SIGKILL to the global control store; {len(ours)} supervisors, fork servers and trials run")
        nodes.head().kill()
        ended = _end_without_head(sweep, driver)
        left_s = _lifetime(ours, 90.0)
        with _running(Nodes()) as second:
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
    with _scene(n_trials, epochs=60) as (nodes, sweep, driver):
        _busy_node(sweep)
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
    with _ended(sweep.driver("--address", address)) as again, suppress(subprocess.TimeoutExpired):
        again.wait(_LIMIT_S)
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


def _is_ours(process: psutil.Process) -> bool:
    try:
        return process.name().startswith("ray::Supervisor") or "sparsefleet.fleet.forkserver" in process.cmdline()
    except psutil.Error:
        return False


def _lifetime(processes: list[psutil.Process], limit_s: float = 120.0) -> float:
    """Seconds until all have ended."""
    begun = time.monotonic()
    while any(_lives(p) for p in processes) and time.monotonic() - begun < limit_s:
        time.sleep(0.1)
    return round(time.monotonic() - begun, 1)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _below(ask: Callable[[], list[psutil.Process]]) -> list[psutil.Process]:
    try:
        return ask()
    except psutil.NoSuchProcess:
        return []


def _signal(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
