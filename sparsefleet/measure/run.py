"""One job, in this process: nets, correctness, clock, correctness again."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from sparsefleet.errors import UserError
from sparsefleet.measure.clock import clock_for
from sparsefleet.measure.config import MeasureJob
from sparsefleet.measure.correctness import Correctness, check_network
from sparsefleet.measure.estimate import Estimate, Plan, compare
from sparsefleet.measure.fingerprint import fingerprint
from sparsefleet.measure.samples import PROTOCOL, Samples, write_all
from sparsefleet.measure.sides import Batch, batches, set_flags, side
from sparsefleet.measure.trust import LEVELS, note
from sparsefleet.plugin import Dataset, Progress, Rewirer
from sparsefleet.registry import Registry
from sparsefleet.sparsity.vocabulary import Frozen
from sparsefleet.trial.build import build_network, load_network
from sparsefleet.trial.record import Timing

SAMPLES = "samples.json"
_MEMORY_SHARE = 0.8


class MeasureRequest(Frozen):
    """A job and where its trial's files lie; crosses process borders as JSON.

    Attributes:
        model: the representative's ``model.safetensors``.
        masks: the folder of its mask artifact; None for a dense network.
        workdir: where the raw samples go.
        budget_s: the number of rounds is cut to this in advance (never below 20).
        warmup_cap_s: the warm-up ends here even if the times have not settled.
    """

    job: MeasureJob
    model: Path
    masks: Path | None = None
    workdir: Path
    level: Literal["screen", "publish"] = "screen"
    budget_s: float = Field(15.0, gt=0)
    warmup_cap_s: float = Field(3.0, gt=0)


class MeasureResult(Frozen):
    """What came of it. ``state`` is ``SUCCEEDED``, ``INCORRECT``, or how it failed; only the first carries a timing."""

    config_key: str
    keys: tuple[str, ...]
    state: str
    reason: str | None = None
    timings: list[Timing] = Field(default_factory=list)
    samples: Path | None = None
    samples_ref: str = ""
    fingerprint: dict[str, Any] = Field(default_factory=dict)
    took_s: float = 0.0


def measure(request: MeasureRequest, registry: Registry | None = None) -> MeasureResult:
    """Times one configuration. A wrong output gives state INCORRECT and no timing."""
    started, job = time.monotonic(), request.job
    registry = registry or Registry()
    set_flags(job.spec, job.threads)
    request.workdir.mkdir(parents=True, exist_ok=True)
    dataset: Dataset = registry.build("dataset", job.spec.dataset)
    inputs = batches(dataset, job.spec, job.batch_size, job.device)
    sparse = load_network(job.spec, request.model, request.masks, registry=registry, device=job.device).module
    found = _check(sparse, inputs, job)
    if not found.ok:
        return _incorrect(request, found, "before the clock started", started)
    alone = _why_alone(job)
    networks = (sparse, copy.deepcopy(sparse), copy.deepcopy(sparse)) if alone else _with_twins(sparse, job, registry)
    specs = (job.spec,) * 3 if alone else (job.spec, job.twin, job.twin)
    timed, dense, second = (side(job.op, net, spec, dataset.info) for net, spec in zip(networks, specs, strict=True))
    plan = Plan(job.config_key, budget_s=request.budget_s, warmup_cap_s=request.warmup_cap_s)
    estimate, samples = compare(dense, timed, second=second, inputs=inputs, plan=plan, clock=clock_for(job.device, job.threads))
    again = _check(sparse, inputs[:1], job)
    if not again.ok:
        return _incorrect(request, again, "after the clock stopped", started)
    machine = fingerprint()
    path = request.workdir / SAMPLES
    reference = write_all(path, {job.config_key: samples})
    timing = _timing(request, estimate, samples, alone, _left_out(job, registry)).model_copy(
        update={"samples_ref": reference, "correctness": found.to_json(), "fingerprint": machine["id"]}
    )
    return MeasureResult(
        config_key=job.config_key,
        keys=job.keys,
        state="SUCCEEDED",
        timings=[timing],
        samples=path,
        samples_ref=reference,
        fingerprint=machine,
        took_s=time.monotonic() - started,
    )


def _check(network: nn.Module, inputs: list[Batch], job: MeasureJob) -> Correctness:
    network.eval()
    found = check_network(
        network,
        [x for x, _ in inputs[:2]],
        precision=job.spec.train.precision,
        gradients=job.op == "step",
        key=job.config_key,
    )
    if not job.versus_dense:
        found.unchecked = []  # masked convolutions have no reference here, and no speed-up either
    network.train(job.op == "step")
    return found


def _with_twins(sparse: nn.Module, job: MeasureJob, registry: Registry) -> tuple[nn.Module, nn.Module, nn.Module]:
    twin = build_network(job.twin, registry=registry, device=job.device).module
    return sparse, twin, copy.deepcopy(twin)


def _why_alone(job: MeasureJob) -> str:
    """Why there is no dense side: the storage may not enter a speed-up, or two dense copies do not fit; else an empty string."""
    if not job.versus_dense:
        return f"{job.execution} never enters a speed-up"
    values_per_parameter = 1 if job.op == "forward" else 4  # weight, gradient and up to two slots of the optimizer
    needed = 2 * job.dense_params * values_per_parameter * (8 if job.spec.train.precision == "fp64" else 4)
    free = memory_free(job.device)
    if free is None or needed <= _MEMORY_SHARE * free:
        return ""
    return f"dense infeasible: two copies need {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"


def memory_free(device: str) -> int | None:
    """Bytes that could be allocated on ``device`` now, or None where the system does not say."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if len(line.split()) >= 2}
    return kib["MemAvailable"] * 1024 if "MemAvailable" in kib else None


def _left_out(job: MeasureJob, registry: Registry) -> tuple[str, bool]:
    """What of a training step the timed one leaves out, or an empty string; and whether every step has it."""
    if job.op != "step" or job.spec.method.rewirer is None:
        return "", False
    rewirer: Rewirer = registry.build("rewirer", job.spec.method.rewirer)
    if type(rewirer).on_step is not Rewirer.on_step:
        return "the method's own work after every step is not in this time", True
    n_due = sum(rewirer.due(Progress(step, 1000, 100)) for step in range(1, 1000))
    if n_due >= 500:
        return "rewiring, at most steps, is not in this time", True
    return ("rewiring, at some steps, is not in this time" if n_due else ""), False


def _timing(request: MeasureRequest, estimate: Estimate, samples: Samples, alone: str, left_out: tuple[str, bool]) -> Timing:
    job = request.job
    doubt, (work, at_every_step) = note(estimate, LEVELS[request.level]), left_out
    if at_every_step:
        doubt = "; ".join(["not trusted: " + work, *filter(None, [doubt.removeprefix("not trusted: ")])])
    remarks = [alone, doubt, "" if at_every_step else work]
    if samples.rounds_because != "as planned":
        remarks.append(samples.rounds_because)
    return Timing(
        protocol=PROTOCOL,
        config_key=job.config_key,
        op=job.op,
        batch_size=job.batch_size,
        dtype=job.spec.train.precision,
        device=job.device,
        threads=job.threads,
        execution=job.execution,
        baseline="none" if alone else "dense_eager",
        dense_s={} if alone else estimate.dense_s,
        sparse_s=estimate.sparse_s,
        speedup=None if alone else estimate.speedup,
        ci95=None if alone else estimate.ci95,
        aa_ratio=estimate.aa_ratio,
        rounds=estimate.rounds,
        kept=estimate.kept,
        dropped=estimate.dropped,
        correctness={},
        samples_ref="",
        fingerprint="",
        note="; ".join(remark for remark in remarks if remark),
    )


def _incorrect(request: MeasureRequest, found: Correctness, when: str, started: float) -> MeasureResult:
    return MeasureResult(
        config_key=request.job.config_key,
        keys=request.job.keys,
        state="INCORRECT",
        reason=f"{when}, {found.reason}",
        took_s=time.monotonic() - started,
    )


def check_files(request: MeasureRequest) -> None:
    """Raises a UserError that names what is missing, before torch works for minutes."""
    for path in (request.model, request.masks):
        if path is not None and not path.exists():
            raise UserError(f"{path} is not there", fix="time a trial whose artifacts are still stored")
