"""What measuring one configuration consists of: passes, each in a fresh process, one after the other. Imports no torch.

``peaks`` measures the machine's limits (cached), ``time`` runs the comparison, once at screen and three times at publish level, ``memory``
runs one side alone. Who runs them (a fleet's children, or processes started by hand) is up to ``Runner``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from sparsefleet.measure.config import MeasureJob
from sparsefleet.measure.verdict import PROCESSES
from sparsefleet.sparsity.vocabulary import Frozen
from sparsefleet.trial.record import BaselineTried, Timing
from sparsefleet.trial.spec import digest

Level = Literal["screen", "publish"]


class Pass(Frozen):
    """One process of a measurement.

    Attributes:
        side: of a memory pass: ``sparse`` or ``dense``.
        process: of a time pass, from 0.
        refresh: of a peaks pass: the limits are taken again although they are known.
    """

    kind: Literal["peaks", "time", "memory"]
    side: Literal["", "sparse", "dense"] = ""
    process: int = 0
    refresh: bool = False


class MeasureRequest(Frozen):
    """A job and where its trial's files lie; crosses process borders as JSON.

    Attributes:
        model: the representative's ``model.safetensors``.
        masks: the folder of its mask artifact; None for a dense network.
        budget_s: the number of rounds is cut to this in advance, never below what the level's gates ask for.
        warmup_cap_s: the warm-up ends here even if the times have not settled.
        chosen: candidates of an earlier comparison with the same dense net, by role (``dense``, ``rival``).
        versus: what the figure's first process was timed against, which the others take over; empty: decide.
        peaks: the machine's limits, for a time pass.
    """

    job: MeasureJob
    part: Pass = Pass(kind="time")
    model: Path
    masks: Path | None = None
    level: Level = "screen"
    budget_s: float = Field(15.0, gt=0)
    warmup_cap_s: float = Field(3.0, gt=0)
    chosen: dict[str, list[BaselineTried]] = Field(default_factory=dict)
    versus: Literal["", "dense", "rival", "none"] = ""
    peaks: dict[str, Any] | None = None


class PassResult(Frozen):
    """What came of one pass. ``state`` is ``SUCCEEDED``, ``INCORRECT``, ``INVALID`` or how it failed otherwise.

    Attributes:
        samples: of a time pass: ``Samples`` as JSON values.
        facts: what a time pass found out beside the samples, the peaks, or the memory's figures.
    """

    state: str
    reason: str | None = None
    samples: dict[str, Any] | None = None
    facts: dict[str, Any] = Field(default_factory=dict)
    fingerprint: dict[str, Any] | None = None
    took_s: float = 0.0


class MeasureResult(Frozen):
    """What came of a job: a timing with the body it rests on (JSON text), or why there is none."""

    config_key: str
    keys: tuple[str, ...]
    state: str
    reason: str | None = None
    timings: list[Timing] = Field(default_factory=list)
    body: str | None = None
    took_s: float = 0.0


Runner = Callable[[MeasureRequest], "PassResult | None"]
"""Runs one pass in a fresh process; None if someone asked to stop."""


@dataclass
class Memo:
    """What later jobs of the same phase need not find out again: limits by device and threads, choices and memory by dense net.

    Only what succeeded is here, and a second measurement starts with an empty one: nothing that the first one found spoils it too.

    Attributes:
        refresh: the machine's limits are taken again although its cache knows them, since a figure beat them.
    """

    peaks: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    chosen: dict[str, list[BaselineTried]] = field(default_factory=dict)
    memory: dict[str, PassResult] = field(default_factory=dict)
    refresh: bool = False


def run_passes(request: MeasureRequest, run: Runner, memo: Memo, earlier: Sequence[str] = ()) -> MeasureResult | None:
    """All passes of a job, and what they add up to; None if someone asked to stop. A pass that fails ends the job, but for its memory.

    Args:
        earlier: raw samples of measurements that were not trustworthy, by reference.
    """
    from sparsefleet.measure.assemble import assemble

    job = request.job
    limits = limits_of(request, run, memo)
    if limits is None:
        return None
    keys = dense_keys(job)
    chosen = {role: memo.chosen[key] for role, key in keys.items() if key in memo.chosen}
    request = request.model_copy(update={"peaks": limits.facts or None, "chosen": chosen})
    times: list[PassResult] = []
    for process in range(PROCESSES[request.level]):
        one = run(request.model_copy(update={"part": Pass(kind="time", process=process)}))
        if one is None:
            return None
        times.append(one)
        state, why = one.state, one.reason
        if state == "SUCCEEDED" and (mixed := _mixed(times, limits)):
            memo.peaks.pop((job.device, job.threads), None)
            state, why = "INFRA_FAILED", mixed
        if state != "SUCCEEDED":
            took = sum(done.took_s for done in times)
            return MeasureResult(config_key=job.config_key, keys=job.keys, state=state, reason=why, took_s=took)
        tried = {role: [BaselineTried.model_validate(row) for row in rows] for role, rows in one.facts["tried"].items()}
        memo.chosen.update({keys[role]: rows for role, rows in tried.items() if role in keys and rows})
        request = request.model_copy(update={"chosen": {**request.chosen, **tried}, "versus": times[0].facts["versus"]})
    memory = _memory(request, run, memo, times[0])
    if memory is None:
        return None
    beside = {"this machine's limits": limits, **{f"the memory of the {side} side": one for side, one in memory.items()}}
    notes = [f"{what} could not be measured: {one.state}, {one.reason}" for what, one in beside.items() if one.state != "SUCCEEDED"]
    return assemble(request, times, memory, earlier, notes)


def limits_of(request: MeasureRequest, run: Runner, memo: Memo) -> PassResult | None:
    """The machine's limits, without facts if they could not be measured; None if someone asked to stop."""
    place = (request.job.device, request.job.threads)
    if place in memo.peaks:
        return PassResult(state="SUCCEEDED", facts=memo.peaks[place])
    found = run(request.model_copy(update={"part": Pass(kind="peaks", refresh=memo.refresh)}))
    if found is None or found.state != "SUCCEEDED":
        return found and found.model_copy(update={"facts": {}})
    memo.peaks[place] = found.facts
    return found


def _memory(request: MeasureRequest, run: Runner, memo: Memo, first: PassResult) -> dict[str, PassResult] | None:
    """What came of the memory passes, by side; None if someone asked to stop."""
    found: dict[str, PassResult] = {}
    slot = f"{dense_keys(request.job)['dense']} {first.facts['baseline']}"
    for side in ("sparse", "dense") if first.facts["versus"] == "dense" else ("sparse",):
        known = memo.memory.get(slot) if side == "dense" else None
        one = known or run(request.model_copy(update={"part": Pass(kind="memory", side=side)}))
        if one is None:
            return None
        found[side] = one
        if side == "dense" and one.state == "SUCCEEDED":
            memo.memory[slot] = one
    return found


def _mixed(times: Sequence[PassResult], limits: PassResult) -> str:
    """Why the newest process cannot stand in one figure with the first one and with these limits, or an empty string."""
    first, newest = (_setting(one) for one in (times[0], times[-1]))
    for what, wanted in first.items():
        if newest[what] != wanted:
            return f"the processes of one figure differ in {what}: {wanted} and {newest[what]}"
    machine = limits.facts.get("machine", newest["the machine"])
    if machine != newest["the machine"]:
        return f"the limits were measured on another machine ({machine}) than the times ({newest['the machine']})"
    return ""


def _setting(one: PassResult) -> dict[str, Any]:
    """What must be the same in all processes of a figure."""
    samples, facts = one.samples or {}, one.facts
    return {
        "the machine": (one.fingerprint or {}).get("id"),
        "what they are timed against": facts["versus"],
        "the baseline": facts["baseline"],
        "the sides": sorted(samples.get("seconds", ())),
        "the form of the small-dense net": [row["name"] for row in facts["tried"].get("rival", ()) if not row["why_not"]],
        "the share of steps with an update": samples.get("update_share"),
    }


def dense_keys(job: MeasureJob) -> dict[str, str]:
    """By role, what two jobs share if one's choice between eager and compiled holds for the other."""
    conditions = [job.op, job.batch_size, job.device, job.threads, list(job.baselines)]
    nets = {"dense": job.twin, **({"rival": job.rival} if job.rival else {})}
    same = {"seed": 0, "start": None}
    return {role: digest([spec.model_copy(update=same).to_json(), *conditions]) for role, spec in nets.items()}


def write(path: Path, value: Frozen) -> None:
    """A request or result as JSON."""
    path.write_text(json.dumps(value.model_dump(mode="json", by_alias=True), allow_nan=False))
