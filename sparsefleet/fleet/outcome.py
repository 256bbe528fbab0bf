"""How an attempt ended, and what follows from it. Pure functions: every budget of the product stands here."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

RESULT = "RESULT"
LOST_BUDGET = 20
CRASH_BUDGET = 2
OOM_BUDGET = 2
BUSY = "another process still works in the trial's folder"


@dataclass(frozen=True)
class Outcome:
    """The end of one attempt, as its supervisor saw it.

    ``end`` is RESULT (``record`` is there), or CRASHED, TIMEOUT, LOST, OOM or PLUGIN_ERROR with a ``reason``.
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
    if over.get("killed"):
        return ended("CRASHED", f"killed: {over['n_processes']} processes at once, or an endless result")
    if code == -signal.SIGKILL:
        if over["oom_kill"]:
            return ended("OOM", f"killed by the kernel for memory; peak {peak_mib:.0f} MiB")
        return ended("LOST", "the trial's process was killed from outside")
    if code < 0:
        return ended("CRASHED", f"{signal.Signals(-code).name} (signal {-code})")
    if "b" in said:
        return ended("LOST", BUSY)
    if "x" in said:
        error = said["x"]
        if error["oom"]:
            return ended("OOM", f"{error['type']}: {error['message']}; peak {peak_mib:.0f} MiB")
        return ended("PLUGIN_ERROR", f"{error['type']}: {error['message']}\n{error['trace']}")
    if code == 0 and "r" in said:
        return Outcome(RESULT, "", said["r"], wall_s, peak_mib)
    return ended("CRASHED", f"the trial's process ended with exit code {code} and without a result: something in it called exit")


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
    if end == "CRASHED":
        exhausted = n_same >= CRASH_BUDGET
        return Verdict(end, f"crashed {n_same} times: {outcome.reason}" if exhausted else outcome.reason, "POISONED" if exhausted else None)
    return Verdict(end, outcome.reason, end)
