"""How an attempt ended, and what follows from it. Pure functions: every budget of the product stands here."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

RESULT = "RESULT"
LOST_BUDGET = 20
CRASH_BUDGET = 2
KILL_BUDGET = 5
"""SIGKILL of the trial's process alone: from outside it says nothing of the trial; again and again, and only here, it does."""
OOM_BUDGET = 2
BUSY = "another process still works in the trial's folder"
WAITS = "WAITS"
"""The node cannot run the trial now, for no fault of the trial: its disk is full, or the artifact store is away. Costs nothing."""
DAMAGED = "DAMAGED"
"""A file that the trial needs is not what was stored. Costs it nothing; the trial that made the file runs again."""


@dataclass(frozen=True)
class Outcome:
    """The end of one attempt, as its supervisor saw it.

    ``end`` is RESULT (``record`` is there), or CRASHED, KILLED, TIMEOUT, LOST, OOM, PLUGIN_ERROR, WAITS or DAMAGED with a ``reason``.
    """

    end: str
    reason: str
    record: dict[str, Any] | None = None
    wall_s: float = 0.0
    peak_mib: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """What the ledger is told: ``final_state`` or, if None, back to the queue; ``alone`` means with nothing else running."""

    end: str
    reason: str
    final_state: str | None
    alone: bool = False


def classify(over: dict[str, Any], said: dict[str, dict[str, Any]]) -> Outcome:
    """From what the fork server saw (``over``) and what the child said (by message kind)."""
    wall_s, peak_mib, code = over["wall_s"], over["peak_mib"], over["code"]

    def ended(end: str, reason: str) -> Outcome:
        return Outcome(end, reason, None, wall_s, peak_mib)

    if over["timed_out"]:
        return ended("TIMEOUT", f"killed after {wall_s:.1f} s")
    if over.get("over_memory"):
        return ended("OOM", f"killed for its memory; {_memory(over)}")
    if over.get("killed"):
        return ended("CRASHED", f"killed: {over['n_processes']} processes at once, or an endless result")
    if code == -signal.SIGKILL:
        if over["oom_kill"]:
            return ended("OOM", f"killed by the kernel for memory; {_memory(over)}")
        return ended("KILLED", "SIGKILL (signal 9): something killed the trial's process, or it did so itself")
    if code < 0:
        return ended("CRASHED", f"{signal.Signals(-code).name} (signal {-code})")
    if "b" in said:
        return ended("LOST", BUSY)
    if "x" in said:
        error = said["x"]
        if error.get("no_space"):
            return ended(WAITS, f"{error['type']}: {error['message']}")
        if error["oom"]:
            return ended("OOM", f"{error['type']}: {error['message']}; {_memory(over)}")
        return ended("PLUGIN_ERROR", f"{error['type']}: {error['message']}\n{error['trace']}")
    if code == 0 and "r" in said:
        return Outcome(RESULT, "", _completed(said["r"], over), wall_s, peak_mib)
    return ended("CRASHED", f"the trial's process ended with exit code {code} and without a result: something in it called exit")


def _memory(over: dict[str, Any]) -> str:
    limit = over.get("memory_mib")
    return f"peak {over['peak_mib']:.0f} MiB" + (f", limit {limit:.0f} MiB" if limit else ", no limit asked")


def _completed(record: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """With what only the fork server knows: how much memory an OOM took, and what the trial left behind."""
    if record.get("state") == "OOM":
        first, *more = str(record.get("reason") or "out of memory").splitlines()
        record = {**record, "reason": "\n".join([f"{first}; {_memory(over)}", *more])}
    left = [f"{n} {what} left behind, and ended" for n, what in ((over.get("n_leftover"), "processes"),) if n]
    left += [f"{n} files in shared memory left behind, and removed" for n in (over.get("n_shared"),) if n]
    return {**record, "warnings": [*record["warnings"], *left]} if left and "warnings" in record else record


def judge(outcome: Outcome, before: Sequence[str]) -> Verdict:
    """What follows from ``outcome``, given how the earlier attempts ended; INTERRUPTED ones cost nothing."""
    end = str(outcome.record["state"]) if outcome.record else outcome.end
    n_same = 1 + sum(1 for earlier in before if earlier == end)
    if end == "OOM":
        return Verdict(end, outcome.reason, None if n_same < OOM_BUDGET else end, alone=n_same < OOM_BUDGET)
    if end == "LOST":
        exhausted = n_same >= LOST_BUDGET
        return Verdict(
            end, f"lost {n_same} times: {outcome.reason}" if exhausted else outcome.reason, "INFRA_FAILED" if exhausted else None
        )
    if end == "KILLED":
        exhausted = n_same >= KILL_BUDGET
        return Verdict(end, f"killed {n_same} times: {outcome.reason}" if exhausted else outcome.reason, "POISONED" if exhausted else None)
    if end == "CRASHED":
        exhausted = n_same >= CRASH_BUDGET
        return Verdict(end, f"crashed {n_same} times: {outcome.reason}" if exhausted else outcome.reason, "POISONED" if exhausted else None)
    return Verdict(end, outcome.reason, end)
