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
    """

    kind: Literal["peaks", "time", "memory"]
    side: Literal["", "sparse", "dense"] = ""
    process: int = 0


class MeasureRequest(Frozen):
    """A job and where its trial's files lie; crosses process borders as JSON.

    Attributes:
        model: the representative's ``model.safetensors``.
        masks: the folder of its mask artifact; None for a dense network.
        budget_s: the number of rounds is cut to this in advance, never below what the level's gates ask for.
        warmup_cap_s: the warm-up ends here even if the times have not settled.
        chosen: candidates of an earlier comparison with the same dense net, by role (``dense``, ``rival``).
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
    """What later jobs of the same phase need not find out again: limits by device and threads, choices and memory by dense net."""

    peaks: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    chosen: dict[str, list[BaselineTried]] = field(default_factory=dict)
    memory: dict[str, PassResult] = field(default_factory=dict)


def run_passes(request: MeasureRequest, run: Runner, memo: Memo, earlier: Sequence[str] = ()) -> MeasureResult | None:
    """All passes of a job, and what they add up to; None if someone asked to stop. A pass that fails ends the job, but for its memory.

    Args:
        earlier: raw samples of measurements that were not trustworthy, by reference.
    """
    from sparsefleet.measure.assemble import assemble

    job = request.job
    place = (job.device, job.threads)
    if place not in memo.peaks:
        found = run(request.model_copy(update={"part": Pass(kind="peaks")}))
        if found is None:
            return None
        memo.peaks[place] = found.facts if found.state == "SUCCEEDED" else {}
    keys = dense_keys(job)
    chosen = {role: memo.chosen[key] for role, key in keys.items() if key in memo.chosen}
    request = request.model_copy(update={"peaks": memo.peaks[place] or None, "chosen": chosen})
    times: list[PassResult] = []
    for process in range(PROCESSES[request.level]):
        one = run(request.model_copy(update={"part": Pass(kind="time", process=process)}))
        if one is None:
            return None
        times.append(one)
        if one.state != "SUCCEEDED":
            return MeasureResult(config_key=job.config_key, keys=job.keys, state=one.state, reason=one.reason, took_s=one.took_s)
        tried = {role: [BaselineTried.model_validate(row) for row in rows] for role, rows in one.facts["tried"].items()}
        memo.chosen.update({keys[role]: rows for role, rows in tried.items() if role in keys and rows})
        request = request.model_copy(update={"chosen": {**request.chosen, **tried}})
    memory: dict[str, PassResult] = {}
    for side in ("sparse", "dense") if times[0].facts["versus"] == "dense" else ("sparse",):
        found = memo.memory.get(keys["dense"]) if side == "dense" else None
        found = found or run(request.model_copy(update={"part": Pass(kind="memory", side=side)}))
        if found is None:
            return None
        memory[side] = found
    if "dense" in memory:
        memo.memory[keys["dense"]] = memory["dense"]
    return assemble(request, times, memory, earlier)


def dense_keys(job: MeasureJob) -> dict[str, str]:
    """By role, what two jobs share if one's choice between eager and compiled holds for the other."""
    conditions = [job.op, job.batch_size, job.device, job.threads, list(job.baselines)]
    nets = {"dense": job.twin, **({"rival": job.rival} if job.rival else {})}
    same = {"seed": 0, "start_from": None}
    return {role: digest([spec.model_copy(update=same).to_json(), *conditions]) for role, spec in nets.items()}


def write(path: Path, value: Frozen) -> None:
    """A request or result as JSON."""
    path.write_text(json.dumps(value.model_dump(mode="json", by_alias=True), allow_nan=False))
