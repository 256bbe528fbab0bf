"""One pass of a measurement, in this process: the machine's limits, the comparison under the clock, or one side's memory."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsefleet.errors import UserError
from sparsefleet.measure import machine
from sparsefleet.measure.audit import Audit, check_flags, facts as audit_facts
from sparsefleet.measure.baseline import COMPILED, EAGER, Baseline, DenseNet, choose
from sparsefleet.measure.clock import Clock, clock_for
from sparsefleet.measure.correctness import Correctness, check_network
from sparsefleet.measure.estimate import Plan, compare, compare_updates
from sparsefleet.measure.fingerprint import fingerprint
from sparsefleet.measure.gpu import conditions as gpu_conditions, look, look_when_cool
from sparsefleet.measure.passes import MeasureRequest, PassResult
from sparsefleet.measure.samples import Samples
from sparsefleet.measure.sides import Batch, Forward, Method, Step, batches, flags, set_flags, side
from sparsefleet.measure.verdict import LEVELS, reason
from sparsefleet.measure.whole import check_compact
from sparsefleet.plugin import Dataset, Rewirer
from sparsefleet.registry import Registry
from sparsefleet.trial.build import Network, build_network, load_network
from sparsefleet.trial.record import BaselineTried
from sparsefleet.trial.spec import TrialSpec

_MEMORY_SHARE = 0.8
_POOL = 8
_UPDATES, _LEAST_UPDATES = 20, 12
"""Rounds that tell what an update of the topology costs; an update may take seconds, and its cost is spread over many steps."""
_SAME_PARAMS = 0.01
"""The rival's trainable parameters equal the sparse net's within this share."""


def run_pass(request: MeasureRequest) -> PassResult:
    """The result of one pass.

    Raises:
        UserError: the trial's files are not there.
        Refused: a side did what no side may do under the clock.
    """
    job, kind = request.job, request.part.kind
    set_flags(job.spec, job.threads)
    if kind == "peaks":
        from sparsefleet.measure.peaks import peaks

        return PassResult(state="SUCCEEDED", facts=peaks(job.device, job.threads, refresh=request.part.refresh).to_json())
    check_files(request)
    if kind == "memory":
        from sparsefleet.measure.footprint import footprint

        return PassResult(state="SUCCEEDED", facts=footprint(request))
    return _Comparison(request).run()


def check_files(request: MeasureRequest) -> None:
    """Raises a UserError that names what is missing, before torch works for minutes."""
    for path in (request.model, request.masks):
        if path is not None and not Path(path).exists():
            raise UserError(f"{path} is not there", fix="time a trial whose artifacts are still stored")


@dataclass
class _Sides:
    """What is timed, and what it is timed against."""

    versus: str
    sparse: Forward | Step
    dense: Forward | Step
    second: Forward | Step
    rival: Forward | Step | None
    baseline: str
    tried: dict[str, list[BaselineTried]]


class _Comparison:
    """One process of the comparison, from the saved network to the raw samples."""

    def __init__(self, request: MeasureRequest) -> None:
        self.request, self.job, self.flags = request, request.job, flags()
        self.gpu = look_when_cool(self.job.device) if self.job.device.startswith("cuda") else None  # before anything touches the GPU
        self.registry = Registry()
        self.dataset: Dataset = self.registry.build("dataset", self.job.spec.dataset)
        pool = batches(self.dataset, self.job.spec, self.job.batch_size, self.job.device, _POOL)
        self.inputs, self.pool = [(x.clone(), y.clone()) for x, y in pool[:4]], pool
        self.clock: Clock = clock_for(self.job.device, self.job.threads)
        self.notes: list[str] = []
        self.conditions: list[str] = []
        self.rival_params: int | None = None
        self.rival_note = ""

    def run(self) -> PassResult:
        """Correctness, baselines, clock, correctness again."""
        request, job = self.request, self.job
        loaded = load_network(job.spec, request.model, request.masks, registry=self.registry, device=job.device)
        before = self._check(loaded, self.inputs[:2])
        if not before.ok:
            return PassResult(state="INCORRECT", reason=f"before the clock started, {before.reason}")
        check_flags(self.flags, "the sparse side")
        method = self._method(loaded)
        sides = self._sides(loaded, method)
        key = f"{job.config_key}|{request.part.process}"
        plan = Plan(key, min_rounds=LEVELS[request.level].rounds, budget_s=request.budget_s, warmup_cap_s=request.warmup_cap_s)
        audit = Audit(self.inputs, self.pool, sides.sparse, job.spec.train.precision, key, self.flags)
        if method and method.at_every_step:
            audit.skipped = "the weights move at every step; the layers are checked before and after"
        _, samples = compare(
            sides.dense, sides.sparse, second=sides.second, rival=sides.rival, inputs=self.inputs, plan=plan, clock=self.clock, watch=audit
        )
        theory = self._theory(loaded, sides) if request.part.process == 0 else {}
        if method and not method.at_every_step and isinstance(sides.sparse, Step):
            samples = self._with_updates(samples, method, sides.sparse)
            check_flags(self.flags, "an update of the topology")
        if self.gpu:
            now = look(self.job.device)
            self.conditions += gpu_conditions(self.gpu, now, os.getpid())
            self.notes += [] if now.pids else ["whether another process used the GPU cannot be read here"]
        after = self._check(loaded, self.inputs[:1])
        if not after.ok:
            return PassResult(state="INCORRECT", reason=f"after the clock stopped, {after.reason}")
        if not all(bool(parameter.isfinite().all()) for parameter in loaded.module.parameters()):
            self.conditions.append(reason("method", why="its weights did not stay finite while it was timed"))
        return PassResult(
            state="SUCCEEDED",
            samples=asdict(samples),
            facts={
                "versus": sides.versus,
                "baseline": sides.baseline,
                "tried": {role: [row.model_dump(mode="json") for row in rows] for role, rows in sides.tried.items()},
                "rival_params": self.rival_params,
                "rival_note": self.rival_note,
                "notes": [*self.notes, audit.skipped],
                "conditions": self.conditions,
                "correctness": {**before.to_json(), **audit_facts(audit)},
                "theory": theory,
            },
            fingerprint=fingerprint(),
        )

    # Sides

    def _sides(self, loaded: Network, method: Method | None) -> _Sides:
        job = self.job
        sparse = loaded.module
        own = Step(sparse, job.spec, self.dataset.info, method=method) if job.op == "step" else Forward(sparse, job.spec)
        alone = self._why_alone()
        if alone:
            self.notes.append(alone)
        rival = self._rival(loaded) if job.versus_dense else None
        if not alone:
            dense = self._choose("dense", build_network(job.twin, registry=self.registry, device=job.device).module, job.twin)
            tried = {"dense": dense.tried, **({"rival": rival.tried} if rival else {})}
            return _Sides("dense", own, dense.dense, dense.second, rival.dense if rival else None, dense.name, tried)
        if rival:  # the small net takes the dense one's place, and its copy that of the control
            return _Sides("rival", own, rival.dense, rival.second, None, "none", {"rival": rival.tried})
        copies = [side(job.op, copy.deepcopy(sparse), job.spec, self.dataset.info) for _ in range(2)]
        return _Sides("none", own, copies[0], copies[1], None, "none", {})

    def _choose(self, role: str, network: nn.Module, spec: TrialSpec) -> Baseline:
        chosen = self.request.chosen.get(role)
        if chosen is None and COMPILED not in self.job.baselines:
            chosen = [BaselineTried(name=EAGER), BaselineTried(name=COMPILED, why_not="the grid does not ask for it")]
        net = DenseNet(self.job.op, network, spec, self.dataset.info, self.job.threads, chosen)
        return choose(net, self.inputs, self.clock)

    def _rival(self, loaded: Network) -> Baseline | None:
        """The small-dense net, or None with a note where there is none."""
        job = self.job
        if job.rival is None:
            return None
        try:
            built = build_network(job.rival, registry=self.registry, device=job.device)
        except Exception as error:  # noqa: BLE001 the model is a plugin's; that it cannot be narrowed is a value
            self.rival_note = f"no small-dense: {error}"
            return None
        self.rival_params = sum(parameter.numel() for parameter in built.module.parameters())
        live = loaded.n_params_dense - sum(m.matrix_shape[0] * m.matrix_shape[1] - m.nnz for m in loaded.sparse.values()) - loaded.n_beside
        if abs(self.rival_params - live) > _SAME_PARAMS * live:
            self.rival_note = f"no small-dense: the model narrows to {self.rival_params:,} parameters, the sparse net has {live:,}"
            return None
        return self._choose("rival", built.module, job.rival)

    def _why_alone(self) -> str:
        """Why there is no dense side: the storage may not enter a speed-up, or two dense copies do not fit; else an empty string."""
        job = self.job
        if not job.versus_dense:
            return f"{job.execution} never enters a speed-up"
        if self.request.versus:  # decided by the figure's first process, which says why
            return "" if self.request.versus == "dense" else "as in the first process"
        values_per_parameter = 1 if job.op == "forward" else 4  # weight, gradient and up to two slots of the optimizer
        needed = 3 * job.dense_params * values_per_parameter * (8 if job.spec.train.precision == "fp64" else 4)
        free = memory_free(job.device)
        if free is None or needed <= _MEMORY_SHARE * free:
            return ""
        return f"dense infeasible: the copies that a comparison holds need {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"

    # Beside the clock

    def _check(self, loaded: Network, inputs: Sequence[Batch]) -> Correctness:
        job, network, was_training = self.job, loaded.module, loaded.module.training
        network.eval()
        found = check_network(
            network, [x for x, _ in inputs], precision=job.spec.train.precision, gradients=job.op == "step", key=job.config_key
        )
        if loaded.is_compact:
            check_compact(found, loaded, [x for x, _ in inputs], job.spec, self.registry, job.config_key)
        if not job.versus_dense:
            found.unchecked = []  # masked convolutions have no reference here, and no speed-up either
        network.train(was_training)
        return found

    def _method(self, loaded: Network) -> Method | None:
        """The rewirer's work, if a training step has any."""
        job = self.job
        if job.op != "step" or job.spec.method.rewirer is None or not loaded.sparse:
            return None
        rewirer: Rewirer = self.registry.build("rewirer", job.spec.method.rewirer)
        method = Method(rewirer, loaded.sparse, loaded.shapes, job.steps)
        return method if method.acts else None

    def _with_updates(self, samples: Samples, method: Method, sparse: Step) -> Samples:
        """The samples with what an update of the topology costs beside a step without one."""
        if not method.share:
            return samples

        def update(batch: Batch) -> None:
            sparse.due(batch)
            sparse(batch)

        plan = Plan(f"{samples.key}|updates", rounds=_UPDATES, min_rounds=_LEAST_UPDATES, budget_s=self.request.budget_s)
        updates = compare_updates(sparse, update, inputs=self.inputs, plan=plan, clock=self.clock)
        return replace(samples, updates=updates, update_share=method.share)

    def _theory(self, loaded: Network, sides: _Sides) -> dict[str, Any]:
        """What was counted, and the limits of the machine for it; empty where the limits are not known."""
        if not self.request.peaks:
            return {}
        from sparsefleet.measure.cost import cost, optimizer_kind
        from sparsefleet.measure.limits import limit, theory
        from sparsefleet.measure.rates import Peaks

        job, precision, x = self.job, self.job.spec.train.precision, self.inputs[0][0]
        kinds = optimizer_kind(job.spec.optimizer), optimizer_kind(job.twin.optimizer)
        own = cost(loaded.module, x, job.op, kinds[0], precision)
        dense = cost(sides.dense.network, x, job.op, kinds[1], precision) if sides.versus == "dense" else None
        peaks = Peaks.from_json(self.request.peaks)
        values = theory(own, dense, peaks, job.op)
        rival = sides.dense if sides.versus == "rival" else sides.rival
        if rival:
            small = cost(rival.network, x, job.op, kinds[1], precision)
            values |= {"flops_rival": float(small.flops), "rival_limit_s": limit(small, peaks, job.op).seconds}
        return values


def memory_free(device: str) -> int | None:
    """Bytes that could be allocated on ``device`` now, or None where the system does not say."""
    return int(torch.cuda.mem_get_info(torch.device(device))[0]) if device.startswith("cuda") else machine.memory_free()
