"""The passes of a job: what is handed on, what is remembered, and what may not stand in one figure. Passes are made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pytest

from sparsefleet.measure.config import groups
from sparsefleet.measure.passes import MeasureRequest, MeasureResult, Memo, PassResult, run_passes

from .bodies import MACHINE, THEORY, samples, updates
from .test_peaks import HAND
from .trained import row_of, spec_of

TRIED = [{"name": "dense_eager"}, {"name": "dense_compiled", "why_not": "the grid does not ask for it"}]
LIMITS = HAND.to_json() | {"machine": MACHINE["id"]}


def timed(**changes: Any) -> PassResult:
    facts: dict[str, Any] = {
        "versus": "dense",
        "baseline": "dense_eager",
        "tried": {"dense": TRIED},
        "rival_params": None,
        "rival_note": "",
        "notes": [],
        "conditions": [],
        "correctness": {"ok": 1.0},
        "theory": THEORY,
    }
    values = {name: changes.pop(name) for name in ("samples", "fingerprint") if name in changes}
    return PassResult.model_validate(
        {"state": "SUCCEEDED", "samples": asdict(samples()), "fingerprint": MACHINE, "facts": facts | changes, **values}
    )


class Passes:
    """Answers every pass by its kind, side and process, and keeps what was asked.

    Args:
        answers: by ``kind``, ``kind side`` or ``kind process``; a pass that is not named succeeds.
    """

    def __init__(self, answers: Mapping[str, PassResult | None] = {}) -> None:
        self.asked: list[MeasureRequest] = []
        self.answers: dict[str, PassResult | None] = {
            "peaks": PassResult(state="SUCCEEDED", facts=LIMITS),
            "time": timed(),
            "memory": PassResult(state="SUCCEEDED", facts={"peak_bytes": 1e6, "peak_kind": "VmHWM"}),
            **answers,
        }

    def __call__(self, request: MeasureRequest) -> PassResult | None:
        self.asked.append(request)
        part = request.part
        name = f"{part.kind} {part.side or part.process}"
        return self.answers[name] if name in self.answers else self.answers[part.kind]

    def kinds(self) -> list[str]:
        return [f"{one.part.kind} {one.part.side}".strip() for one in self.asked]


def done(run: Passes, memo: Memo | None = None, level: str = "screen", earlier: tuple[str, ...] = ()) -> MeasureResult:
    (job,) = groups([row_of(spec_of())], [8], ["step"])
    request = MeasureRequest.model_validate({"job": job, "model": "model", "level": level})
    found = run_passes(request, run, Memo() if memo is None else memo, earlier)
    assert found is not None
    return found


def test_what_the_first_process_decided_is_handed_to_the_others() -> None:
    run = Passes()
    assert done(run, level="publish").timings[0].verdict == "FASTER"
    assert run.kinds() == ["peaks", "time", "time", "time", "memory sparse", "memory dense"]
    assert [one.versus for one in run.asked[1:4]] == ["", "dense", "dense"]
    assert [[row.name for row in one.chosen.get("dense", [])] for one in run.asked[1:4]] == [[], *[["dense_eager", "dense_compiled"]] * 2]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"versus": "rival", "baseline": "none"}, "what they are timed against: dense and rival"),
        ({"baseline": "dense_compiled"}, "the baseline: dense_eager and dense_compiled"),
        ({"samples": asdict(samples(rival=2.5e-3))}, "the sides: ['dense', 'second', 'sparse'] and ['dense', 'rival', 'second', 'sparse']"),
        ({"tried": {"dense": TRIED, "rival": [{"name": "dense_eager", "why_not": ""}]}}, "the form of the small-dense net: [] and"),
        ({"samples": {**asdict(samples()), "updates": asdict(updates(2.0)), "update_share": 0.1}}, "the share of steps with an update"),
        ({"fingerprint": {**MACHINE, "id": "fp:other"}}, "the machine: fp:hand and fp:other"),
    ],
)
def test_processes_that_differ_make_no_figure(other: dict[str, Any], said: str) -> None:
    found = done(Passes({"time 2": timed(**other)}), level="publish")
    assert (found.state, found.timings, found.body) == ("INFRA_FAILED", [], None)
    assert str(found.reason).startswith("the processes of one figure differ in")
    assert said in str(found.reason)


def test_times_are_not_held_against_the_limits_of_another_machine() -> None:
    memo = Memo()
    found = done(Passes({"peaks": PassResult(state="SUCCEEDED", facts=LIMITS | {"machine": "fp:other"})}), memo)
    assert found.state == "INFRA_FAILED"
    assert "another machine (fp:other)" in str(found.reason)
    assert memo.peaks == {}
    assert done(Passes(), memo).state == "SUCCEEDED"


def test_limits_that_failed_leave_a_doubt_and_are_asked_for_again() -> None:
    memo = Memo()
    (timing,) = done(Passes({"peaks": PassResult(state="CRASHED", reason="signal 9"), "time": timed(theory={})}), memo).timings
    assert timing.verdict == "NOT_TRUSTWORTHY"
    assert any("the measurement of its limits is missing" in reason for reason in timing.reasons)
    assert "this machine's limits could not be measured: CRASHED, signal 9" in timing.note
    second, third = Passes(), Passes()
    assert done(second, memo).timings[0].verdict == "FASTER"
    assert done(third, memo).timings[0].verdict == "FASTER"
    assert ("peaks" in second.kinds(), "peaks" in third.kinds()) == (True, False)


@pytest.mark.parametrize("refresh", [False, True])
def test_limits_are_taken_again_where_a_figure_beat_them(refresh: bool) -> None:
    run = Passes()
    done(run, Memo(refresh=refresh))
    assert run.asked[0].part.refresh is refresh


def test_a_memory_pass_that_failed_is_not_remembered() -> None:
    memo = Memo()
    (first,) = done(Passes({"memory dense": PassResult(state="CRASHED", reason="signal 11")}), memo).timings
    assert "dense_peak_bytes" not in first.memory
    assert "the memory of the dense side could not be measured: CRASHED, signal 11" in first.note
    again, known = Passes(), Passes()
    assert done(again, memo).timings[0].memory["dense_peak_bytes"] == 1e6
    assert done(known, memo).timings[0].memory["dense_peak_bytes"] == 1e6
    assert (again.kinds()[-1], known.kinds()[-1]) == ("memory dense", "memory sparse")


def test_the_memory_of_another_baseline_is_measured_for_itself() -> None:
    memo = Memo()
    done(Passes(), memo)
    run = Passes({"time": timed(baseline="dense_compiled")})
    done(run, memo)
    assert run.kinds()[-1] == "memory dense"


def test_who_asks_to_stop_gets_nothing() -> None:
    (job,) = groups([row_of(spec_of())], [8], ["step"])
    for kind in ("peaks", "time", "memory"):
        assert run_passes(MeasureRequest.model_validate({"job": job, "model": "model"}), Passes({kind: None}), Memo()) is None


def test_earlier_measurements_are_named() -> None:
    (timing,) = done(Passes(), earlier=("samples.json#sha256=aa",)).timings
    assert (timing.attempt, timing.earlier) == (2, ["samples.json#sha256=aa"])
