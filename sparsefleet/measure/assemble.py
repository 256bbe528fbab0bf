"""From the passes of a job to its timing: a pure function of the body that is stored, so that anyone can do it again. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sparsefleet.measure.limits import SLACK
from sparsefleet.measure.passes import MeasureRequest, MeasureResult, PassResult
from sparsefleet.measure.ratios import Estimate, Ratio, recompute
from sparsefleet.measure.samples import PROTOCOL, Body, Samples, reference
from sparsefleet.measure.verdict import LEVELS, Word, doubts, judge, reason, unsteady
from sparsefleet.trial.record import Timing

_NEEDED = ("cpu", "software")


def assemble(
    request: MeasureRequest,
    times: Sequence[PassResult],
    memory: Mapping[str, PassResult],
    earlier: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> MeasureResult:
    """The result of a job whose time passes all succeeded.

    Args:
        earlier: raw samples of other measurements of it, by reference.
        notes: what the reader of the timing has to know besides.
    """
    processes = [Samples.of(one.samples) for one in times if one.samples]
    first = times[0].facts
    facts = {
        **{name: first[name] for name in ("versus", "baseline", "tried", "rival_params", "rival_note", "theory")},
        "notes": [*first["notes"], *notes],
        "correctness": _worst([one.facts["correctness"] for one in times]),
        "conditions": list(dict.fromkeys(text for one in times for text in one.facts["conditions"])),
        "memory": _memory(memory),
        "earlier": list(earlier),
    }
    fingerprint = times[0].fingerprint or {}
    body = Body(request.job.conditions, request.level, processes, facts, fingerprint).to_bytes()
    timing = timing_of(Body.from_bytes(body), reference(body))
    took = sum(one.took_s for one in (*times, *memory.values()))
    job = request.job
    return MeasureResult(config_key=job.config_key, keys=job.keys, state="SUCCEEDED", timings=[timing], body=body.decode(), took_s=took)


def beside(body: bytes, others: Sequence[str]) -> tuple[Timing, bytes]:
    """The timing of ``body`` and its bytes, which now name further measurements of the same configuration that do not count."""
    found = Body.from_bytes(body)
    data = replace(found, facts={**found.facts, "earlier": [*found.facts["earlier"], *others]}).to_bytes()
    return timing_of(Body.from_bytes(data), reference(data)), data


def timing_of(body: Body, samples_ref: str) -> Timing:
    """The timing that a body says, to the last digit."""
    facts, job, versus = body.facts, body.job, body.facts["versus"]
    estimate = recompute(*body.processes)
    theory = _theory(facts["theory"], estimate, versus)
    conditions = [*facts["conditions"], *_incomplete(body.fingerprint, theory), *_impossible(theory, estimate, versus)]

    def judged(ratio: Ratio | None) -> tuple[Word, list[str]]:
        return ("NONE", []) if ratio is None else judge(estimate, body.level, job["threads"], conditions, ratio)

    main = estimate.vs_dense if versus == "dense" else None
    rival = {"dense": estimate.vs_rival, "rival": estimate.vs_dense}.get(versus)
    small = estimate.rival_vs_dense if versus == "dense" else None
    verdict, reasons = judged(main)
    rival_verdict, rival_reasons = judged(rival)
    if main is None:  # the times themselves are doubted
        gates = LEVELS[body.level]
        reasons = rival_reasons or [*conditions, *doubts(estimate, gates, job["threads"]), *unsteady(estimate.vs_dense, gates)]
    prepare_s = facts["memory"].get("prepare_s")
    dense_s = estimate.dense_s if versus == "dense" else {}
    remarks = [*facts["notes"], _updates(estimate)]
    remarks += dict.fromkeys(s.rounds_because for s in body.processes if s.rounds_because != "as planned")
    return Timing(
        protocol=PROTOCOL,
        level=body.level,
        **job,
        baseline=facts["baseline"],
        baselines_tried=facts["tried"].get("dense", []),
        dense_s=dense_s,
        sparse_s=estimate.sparse_s,
        rival_s=estimate.dense_s if versus == "rival" else estimate.rival_s,
        speedup=main and main.value,
        ci95=main and main.ci95,
        verdict=verdict,
        reasons=reasons,
        rival_speedup=rival and rival.value,
        rival_ci95=rival and rival.ci95,
        rival_verdict=rival_verdict,
        rival_reasons=rival_reasons,
        rival_vs_dense=small and small.value,
        rival_vs_dense_ci95=small and small.ci95,
        rival_vs_dense_verdict=judged(small)[0],
        rival_params=facts["rival_params"],
        rival_note=facts["rival_note"],
        aa_ratio=estimate.aa_ratio,
        drift=estimate.drift,
        rounds=estimate.rounds,
        kept=estimate.kept,
        dropped=estimate.dropped,
        processes=estimate.processes,
        between=estimate.vs_dense.between,
        warmup_s=sum(samples.warmup["seconds"] for samples in body.processes),
        prepare_s=prepare_s,
        breakeven_calls=_breakeven(prepare_s, dense_s, estimate.sparse_s),
        method_share=estimate.method_share,
        correctness=facts["correctness"],
        theory=theory,
        memory={name: value for name, value in facts["memory"].items() if name != "prepare_s"},
        samples_ref=samples_ref,
        earlier=facts["earlier"],
        fingerprint=body.fingerprint.get("id", ""),
        attempt=1 + len(facts["earlier"]),
        note="; ".join(remark for remark in remarks if remark),
    )


def _updates(estimate: Estimate) -> str:
    if estimate.update_calls is None:
        return ""
    return f"an update takes as long as {estimate.update_calls:.1f} steps, and {100 * estimate.update_share:.2g} % of the steps have one"


def _worst(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of several processes the errors that come nearest to their tolerance."""
    return max(found, key=lambda one: one["max_rel_err"] / one["tol"] if one.get("tol") else 0.0)


def _memory(found: Mapping[str, PassResult]) -> dict[str, float | str]:
    """The sparse side's figures, and the dense side's peak beside them; what was not measured is not there."""
    own = dict(found["sparse"].facts) if "sparse" in found and found["sparse"].state == "SUCCEEDED" else {}
    dense = found.get("dense")
    if dense and dense.state == "SUCCEEDED" and "peak_bytes" in dense.facts:
        own["dense_peak_bytes"] = dense.facts["peak_bytes"]
    return own


def _theory(facts: Mapping[str, Any], estimate: Estimate, versus: str) -> dict[str, float | str]:
    """What was counted, and what of it was reached.

    ``realised_fraction`` is the measured speed-up over that of the two limits; above 1 it says that dense is further from its limit.
    """
    found: dict[str, float | str] = dict(facts)
    limit, roofline = found.get("limit_s"), found.get("roofline_speedup")
    if isinstance(limit, float):
        found["fraction_of_limit"] = limit / estimate.sparse_s["median"]
    if isinstance(roofline, float) and versus == "dense" and estimate.speedup is not None:
        found["realised_fraction"] = estimate.speedup / roofline
    return found


def _impossible(theory: Mapping[str, float | str], estimate: Estimate, versus: str) -> list[str]:
    """A reason for each side that is faster than the machine can be, by more than the scatter of two measurements."""
    sides = {
        "sparse": ("limit_s", estimate.sparse_s),
        "dense": ("dense_limit_s", estimate.dense_s if versus == "dense" else {}),
        "small-dense": ("rival_limit_s", estimate.dense_s if versus == "rival" else estimate.rival_s),
    }
    found = []
    for side, (name, seconds) in sides.items():
        limit = theory.get(name)
        if isinstance(limit, float) and seconds and limit > SLACK * seconds["median"]:
            found.append(reason("limit", side=side, percent=100 * limit / seconds["median"]))
    return found


def _breakeven(prepare_s: float | None, dense_s: Mapping[str, float], sparse_s: Mapping[str, float]) -> float | None:
    """Calls after which the conversion has paid; None if it never does, or nobody knows."""
    gain = dense_s["median"] - sparse_s["median"] if dense_s else 0.0
    return float(math.ceil(prepare_s / gain)) if prepare_s is not None and gain > 0 else None


def _incomplete(fingerprint: Mapping[str, Any], theory: Mapping[str, Any]) -> list[str]:
    """Without its limits, nobody can tell whether a time is possible on this machine."""
    missing = [name for name in _NEEDED if not fingerprint.get("stable", {}).get(name)]
    missing += [] if isinstance(theory.get("limit_s"), float) else ["the measurement of its limits"]
    return [reason("fingerprint", what=", ".join(missing))] if missing else []
