"""From a body to its timing: one case a gate, on samples made by hand."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from sparsefleet.errors import UserError
from sparsefleet.measure.assemble import timing_of
from sparsefleet.measure.recheck import recheck
from sparsefleet.measure.samples import Body, reference

from .bodies import MACHINE, ROUNDS, THEORY, body, disturbed, samples, timing, updates

RIVAL = samples(rival=2.5e-3)
DRIFTS = [10e-3 * (1 + 0.08 * i / ROUNDS) for i in range(ROUNDS)]
SCATTERS = [10e-3 * (1.4 if i % 2 else 0.7) for i in range(ROUNDS)]


def test_an_undisturbed_measurement_earns_its_verdicts() -> None:
    found = timing(RIVAL)
    assert (found.speedup, found.verdict, found.reasons) == (pytest.approx(2.0), "FASTER", [])
    assert (found.rival_speedup, found.rival_verdict, found.rival_reasons) == (pytest.approx(0.5), "SLOWER", [])
    assert (found.rival_vs_dense, found.rival_vs_dense_verdict) == (pytest.approx(4.0), "FASTER")
    assert (found.dense_s["median"], found.sparse_s["median"], found.rival_s["median"]) == (10e-3, 5e-3, 2.5e-3)
    assert (found.rounds, found.kept, found.processes, found.between, found.aa_ratio) == (50, 50, 1, None, 1.0)
    three = timing(RIVAL, RIVAL, RIVAL)
    assert (three.level, three.verdict, three.rival_verdict, three.between) == ("publish", "FASTER", "SLOWER", 0.0)


def without(name: str) -> dict[str, Any]:
    return {**MACHINE, "stable": {**MACHINE["stable"], name: {}}}


GATES: dict[str, dict[str, Any]] = {
    "kept": {"processes": [disturbed(RIVAL, 31)]},
    "control": {"processes": [samples(rival=2.5e-3, second=10.5e-3)]},
    "threads": {"processes": [replace(RIVAL, process_s={side: [2 * v for v in row] for side, row in RIVAL.seconds.items()})]},
    "method": {"processes": [replace(RIVAL, updates=disturbed(updates(11.0), 15), update_share=0.1)]},
    "fingerprint": {"machine": without("cpu")},
    "conditions": {"conditions": ["another process used the device: pid 7"]},
    "no software": {"machine": without("software")},
    "no limits": {"theory": {}},
    "limit of sparse": {"theory": {**THEORY, "limit_s": 5.3e-3}},
    "limit of dense": {"theory": {**THEORY, "dense_limit_s": 10.6e-3}},
    "limit of the rival": {"theory": {**THEORY, "rival_limit_s": 2.7e-3}},
}
SAID = {
    "kept": "19 of 50 rounds kept (dropped: cpu_contention 31)",
    "control": "dense against dense reads 0.952",
    "threads": "the dense side used 2.0 CPUs with 1 thread(s) set",
    "method": "the method's own work is not in this time: 5 of 20 timed updates were undisturbed",
    "fingerprint": "the machine is not fully described: cpu is missing",
    "conditions": "another process used the device: pid 7",
    "no software": "the machine is not fully described: software is missing",
    "no limits": "the machine is not fully described: the measurement of its limits is missing",
    "limit of sparse": "the sparse side is faster than this machine's limit (106 % of it)",
    "limit of dense": "the dense side is faster than this machine's limit (106 % of it)",
    "limit of the rival": "the small-dense side is faster than this machine's limit (108 % of it)",
}


@pytest.mark.parametrize("gate", GATES)
def test_each_gate_of_the_measurement_takes_the_trust_from_every_figure(gate: str) -> None:
    options = dict(GATES[gate])
    found = timing(*options.pop("processes", [RIVAL]), **options)
    assert {found.verdict, found.rival_verdict, found.rival_vs_dense_verdict} == {"NOT_TRUSTWORTHY"}
    for reasons in (found.reasons, found.rival_reasons):
        assert any(reason.startswith(SAID[gate]) for reason in reasons), reasons


def test_five_percent_beyond_a_limit_is_the_scatter_of_two_measurements() -> None:
    assert timing(theory={**THEORY, "limit_s": 5.2e-3}).verdict == "FASTER"


@pytest.mark.parametrize(
    ("process", "said"),
    [
        (samples(sparse=[v / 2 for v in DRIFTS], rival=[v / 4 for v in DRIFTS]), "drifted by -5.1 % while it was measured"),
        (samples(sparse=[v / 2 for v in SCATTERS], rival=[v / 4 for v in SCATTERS]), "the interval is ±"),
        (disturbed(samples(rival=2.5e-3), 45), "too few rounds for an interval"),
    ],
)
def test_each_gate_of_a_ratio_takes_its_trust(process: Any, said: str) -> None:
    found = timing(process)
    assert found.verdict == "NOT_TRUSTWORTHY"
    assert any(reason.startswith(said) for reason in found.reasons), found.reasons


@pytest.mark.parametrize(
    ("rival", "said"),
    [
        ([v / 4 for v in DRIFTS], "drifted by +5.4 % while it was measured"),
        ([v / 4 for v in SCATTERS], "the interval is ±"),
    ],
)
def test_the_rivals_figures_have_gates_of_their_own(rival: list[float], said: str) -> None:
    """Dense and sparse are steady, so that figure stands; what the small-dense side did, only its own figures have to bear."""
    found = timing(samples(rival=rival))
    assert (found.verdict, found.reasons) == ("FASTER", [])
    assert (found.rival_verdict, found.rival_vs_dense_verdict) == ("NOT_TRUSTWORTHY", "NOT_TRUSTWORTHY")
    assert any(reason.startswith(said) for reason in found.rival_reasons), found.rival_reasons


def test_processes_that_differ_in_one_ratio_spoil_that_one() -> None:
    sparse = timing(*(samples(sparse=5e-3 * by, rival=2.5e-3 * by) for by in (1.0, 1.0, 1.06)))
    assert sparse.between == pytest.approx(0.06)
    assert "the processes differ by 6.0 %" in sparse.reasons
    assert sparse.rival_verdict == "SLOWER"
    rival = timing(*(samples(rival=2.5e-3 * by) for by in (1.0, 1.0, 1.06)))
    assert (rival.verdict, rival.rival_verdict) == ("FASTER", "NOT_TRUSTWORTHY")
    assert "the processes differ by 6.0 %" in rival.rival_reasons


def test_where_dense_does_not_fit_the_rival_takes_its_place_with_all_its_gates() -> None:
    found = timing(samples(dense=2.5e-3, second=2.5e-3), versus="rival", theory={"limit_s": 1e-3, "rival_limit_s": 1e-3})
    assert (found.speedup, found.verdict, found.dense_s) == (None, "NONE", {})
    assert (found.rival_speedup, found.rival_verdict, found.rival_s["median"]) == (pytest.approx(0.5), "SLOWER", 2.5e-3)
    assert found.reasons == []
    fast = timing(samples(dense=2.5e-3, second=2.5e-3), versus="rival", theory={"limit_s": 1e-3, "rival_limit_s": 3e-3})
    assert (fast.verdict, fast.rival_verdict) == ("NONE", "NOT_TRUSTWORTHY")
    assert fast.reasons == fast.rival_reasons != []


def test_what_is_timed_alone_has_no_verdict_but_its_doubts() -> None:
    quiet, noisy = timing(versus="none"), timing(samples(second=10.5e-3), versus="none")
    assert (quiet.speedup, quiet.verdict, quiet.rival_verdict, quiet.reasons) == (None, "NONE", "NONE", [])
    assert (noisy.verdict, noisy.reasons) == ("NONE", ["dense against dense reads 0.952"])


def test_theory_is_set_beside_what_was_measured() -> None:
    theory = timing().theory
    assert theory["realised_fraction"] == pytest.approx(2.0 / 4.0)
    assert theory["fraction_of_limit"] == pytest.approx(1e-3 / 5e-3)
    assert "realised_fraction" not in timing(versus="none").theory


def test_the_conversion_pays_after_what_it_cost_over_what_a_call_gains() -> None:
    assert timing(memory={"prepare_s": 1.0}).breakeven_calls == pytest.approx(200, abs=1)
    assert timing(samples(sparse=20e-3), memory={"prepare_s": 1.0}).breakeven_calls is None
    assert timing(versus="none", memory={"prepare_s": 1.0}).breakeven_calls is None
    assert timing().breakeven_calls is None


def test_updates_are_in_the_time_the_share_and_the_note_alike() -> None:
    """A tenth of the steps has an update as long as 11 steps, so an average step takes two."""
    found = timing(replace(samples(), updates=updates(11.0), update_share=0.1))
    assert (found.speedup, found.verdict) == (pytest.approx(1.0), "SAME")
    assert found.sparse_s["median"] == pytest.approx(10e-3)
    assert found.method_share == pytest.approx(0.5)
    assert found.note == "an update takes as long as 11.0 steps, and 10 % of the steps have one"


def test_the_worst_controls_and_shares_of_three_processes_count() -> None:
    found = timing(samples(second=10.5e-3), samples(), samples(second=9.5e-3))
    assert (found.verdict, found.aa_ratio) == ("NOT_TRUSTWORTHY", pytest.approx(10 / 9.5))


def test_a_second_measurement_names_the_others() -> None:
    found = timing(earlier=["samples.json#sha256=aa", "samples.json#sha256=bb"])
    assert (found.attempt, found.earlier) == (3, ["samples.json#sha256=aa", "samples.json#sha256=bb"])


def test_a_body_survives_its_bytes_with_its_updates() -> None:
    one = body(replace(RIVAL, updates=updates(11.0), update_share=0.1))
    assert Body.from_bytes(one.to_bytes()) == one


@pytest.mark.parametrize("schema", ["sf-samples/1", "sf-samples/2"])
def test_older_bodies_are_refused_with_what_to_do(schema: str) -> None:
    with pytest.raises(UserError, match=f"older version .{schema}.") as error:
        Body.from_bytes(body().to_bytes().replace(b"sf-samples/3", schema.encode()))
    assert "--remeasure" in str(error.value.fix)


def stored(**options: Any) -> tuple[dict[str, Any], bytes]:
    data = body(*options.pop("processes", [RIVAL]), **options).to_bytes()
    return timing_of(Body.from_bytes(data), reference(data)).model_dump(mode="json"), data


def test_the_recheck_holds_the_other_measurements_against_the_one_that_counts() -> None:
    busy, better, other = (
        data for _, data in (stored(processes=[disturbed(RIVAL, 40)]), stored(), stored(level="publish", processes=[disturbed(RIVAL, 40)]))
    )
    known = {hashlib.sha256(data).hexdigest(): data for data in (busy, better, other)}

    def said(timing: dict[str, Any], data: bytes) -> list[str]:
        return recheck(timing, data, known.__getitem__)

    assert said(*stored(earlier=[reference(busy)])) == []
    (cherry,) = said(*stored(processes=[disturbed(RIVAL, 41)], earlier=[reference(better)]))
    assert "which can be trusted where the one that counts cannot" in cherry
    (level,) = said(*stored(earlier=[reference(other)]))
    assert level.endswith("whose level is 'publish'")
    known[hashlib.sha256(busy).hexdigest()] = better
    (altered,) = said(*stored(earlier=[reference(busy)]))
    assert "the samples are" in altered
    assert recheck(*stored(earlier=[reference(busy)])) == []  # without a way to load them, only its own samples are asked
