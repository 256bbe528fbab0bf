"""How an attempt ended, and what follows: every budget."""

from __future__ import annotations

import pytest

from sparsefleet.fleet.outcome import Outcome, classify, judge


def over(code: int, **facts: object) -> dict:
    return {"code": code, "wall_s": 1.0, "peak_mib": 100.0, "timed_out": False, "oom_kill": False, "n_processes": 1, **facts}


def test_a_record_counts_only_with_exit_0() -> None:
    record = {"state": "SUCCEEDED"}
    assert classify(over(0), {"r": record}).record == record
    assert classify(over(1), {"r": record}).end == "CRASHED"
    assert classify(over(-11), {"r": record}).end == "CRASHED"
    assert classify(over(-9, timed_out=True), {"r": record}).end == "TIMEOUT"


def test_a_kill_for_memory_is_not_a_kill_from_outside() -> None:
    assert classify(over(-9), {}).end == "KILLED"
    assert classify(over(-9, oom_kill=True), {}).end == "OOM"


@pytest.mark.parametrize(
    ("end", "before", "final", "alone"),
    [
        ("LOST", [], None, False),
        ("LOST", ["LOST"] * 18, None, False),
        ("LOST", ["LOST"] * 19, "INFRA_FAILED", False),
        ("LOST", ["LOST"] * 18 + ["CRASHED", "INTERRUPTED"] * 9, None, False),
        ("CRASHED", [], None, False),
        ("CRASHED", ["LOST"] * 9, None, False),
        ("CRASHED", ["CRASHED"], "POISONED", False),
        ("KILLED", ["KILLED"] * 3 + ["LOST"] * 9, None, False),
        ("KILLED", ["KILLED"] * 4, "POISONED", False),
        ("OOM", [], None, True),
        ("OOM", ["OOM"], "OOM", False),
        ("TIMEOUT", [], "TIMEOUT", False),
        ("PLUGIN_ERROR", [], "PLUGIN_ERROR", False),
    ],
)
def test_budgets_are_separate(end: str, before: list[str], final: str | None, alone: bool) -> None:
    verdict = judge(Outcome(end, "why"), before)
    assert (verdict.final_state, verdict.alone) == (final, alone)
    assert "why" in verdict.reason


def test_a_recorded_failure_has_its_budget_too() -> None:
    def recorded(state: str) -> Outcome:
        return Outcome("RESULT", "", {"state": state})

    assert judge(recorded("SUCCEEDED"), []).final_state == "SUCCEEDED"
    assert judge(recorded("DIVERGED"), []).final_state == "DIVERGED"
    assert judge(recorded("OOM"), []).alone
    assert judge(recorded("OOM"), ["OOM"]).final_state == "OOM"


def test_an_end_for_memory_names_the_peak_and_the_limit() -> None:
    recorded = {"state": "OOM", "reason": "RuntimeError: no memory\ntrace", "warnings": []}
    assert (
        classify(over(0, memory_mib=64.0), {"r": recorded}).record["reason"] == "RuntimeError: no memory; peak 100 MiB, limit 64 MiB\ntrace"
    )
    raised = {"type": "OutOfMemoryError", "message": "CUDA out of memory", "trace": "", "oom": True}
    assert classify(over(0), {"x": raised}).reason == "OutOfMemoryError: CUDA out of memory; peak 100 MiB, no limit asked"
    assert classify(over(-9, killed=True, over_memory=True, memory_mib=8), {}).end == "OOM"
