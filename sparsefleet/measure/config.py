"""From trials to what is timed: a timing belongs to a configuration, not to a seed. Imports no torch.

Two trials share a timing if nothing that decides the time differs: the code of all that takes part (a rewirer or a connectivity decides where
connections lie, and with that how long a gather takes), shapes, model, storage, asked connections of each layer, the method with its
parameters, activation, batch, dtype, device, threads, and for a training step the optimizer's kind. The lowest seed is timed for all; its realised connections stand in the record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

from pydantic import Field

from sparsefleet.code_digest import module_digest
from sparsefleet.measure.samples import PROTOCOL
from sparsefleet.sparsity.vocabulary import Frozen
from sparsefleet.trial.spec import Method, Optimizer, PluginRef, TrialSpec, digest

Op = Literal["forward", "step"]
BASELINES = ("dense_eager", "dense_compiled")
"""Forms of a dense net that can be the baseline."""


class TrialLike(Protocol):
    """What of a ledger row is needed here."""

    @property
    def key(self) -> str:
        """The trial key."""

    @property
    def twin_key(self) -> str | None:
        """The dense twin's trial key."""

    @property
    def spec(self) -> dict[str, Any]:
        """The spec as JSON."""

    @property
    def rival_key(self) -> str | None:
        """The small-dense trial's key."""

    @property
    def record(self) -> dict[str, Any] | None:
        """The record as JSON."""


class MeasureJob(Frozen):
    """One configuration to time: one op at one batch size.

    Attributes:
        keys: every trial that the timing belongs to.
        representative: the one whose saved network is timed.
        rival: the small-dense net that is timed beside it; None where nothing is sparse.
        baselines: forms of the dense nets that are candidates.
        versus_dense: False for storage that may not enter a speed-up (``masked_dense``): it is timed alone.
        params: live trainable parameters of the timed network, which the rival's must equal.
        dense_params: parameters of the dense twin, to tell whether it fits.
        steps: steps of the whole training and of one epoch: how often a rewirer acts.
    """

    config_key: str
    keys: tuple[str, ...]
    representative: str
    spec: TrialSpec
    twin: TrialSpec
    rival: TrialSpec | None = None
    op: Op
    batch_size: int = Field(ge=1)
    baselines: tuple[str, ...] = BASELINES
    device: str
    threads: int = Field(ge=1)
    execution: str
    versus_dense: bool = True
    params: int = 0
    dense_params: int = 0
    steps: tuple[int, int] = (1000, 100)

    @property
    def conditions(self) -> dict[str, Any]:
        """What the figure holds for, as it stands in a timing."""
        names = ("config_key", "op", "batch_size", "device", "threads", "execution")
        return {**{name: getattr(self, name) for name in names}, "dtype": self.spec.train.precision}


def groups(
    trials: Iterable[TrialLike],
    batch_sizes: Sequence[int | Literal["train"]],
    ops: Sequence[Op] = ("forward", "step"),
    *,
    baselines: Sequence[str] = BASELINES,
    also_masked: bool = False,
) -> list[MeasureJob]:
    """One job per configuration, op and batch size; in the order in which their first trials come.

    Trials that did not succeed are left out. Dense twins get no job: their time is the dense side of the others'; nor do small-dense trials
    that are timed as the rival of a sparse one. Trials on ``masked``
    get none either, unless ``also_masked``; then they are timed alone, without a speed-up.

    Args:
        batch_sizes: ``train`` is the training's own.
        baselines: forms of the dense nets that are candidates.
    """
    rows = [row for row in trials if row.record and row.record.get("state") == "SUCCEEDED" and row.record.get("counts")]
    code = {row.key: (row.record or {}).get("code", {}) for row in rows}
    specs = {row.key: TrialSpec.model_validate(row.spec) for row in rows}
    rivals = {row.rival_key for row in rows if specs[row.key].is_sparse and _enters_speedups(row)}
    jobs: dict[str, MeasureJob] = {}
    for row in sorted(rows, key=lambda row: specs[row.key].seed):
        spec = specs[row.key]
        twin = specs.get(row.twin_key or "") or twin_of(spec)
        rival = specs.get(row.rival_key or "") or rival_of(spec, twin)
        versus_dense = _enters_speedups(row)
        used = {**code.get(row.rival_key or "", {}), **code.get(row.twin_key or "", {}), **code[row.key]}
        if row.key in rivals:
            continue
        if _architecture(spec) == _architecture(twin) or not (versus_dense or also_masked):
            continue
        for op in ops:
            for batch_size in dict.fromkeys(spec.train.batch_size if size == "train" else size for size in batch_sizes):
                job = _job(row, (spec, twin, rival if versus_dense else None), (op, batch_size, tuple(baselines)), used)
                known = jobs.get(job.config_key)
                if known:
                    job = known.model_copy(update={"keys": tuple(sorted({*known.keys, *job.keys}))})
                jobs[job.config_key] = job
    place = {row.key: i for i, row in enumerate(rows)}
    return sorted(jobs.values(), key=lambda job: min(place[key] for key in job.keys))


def _enters_speedups(row: TrialLike) -> bool:
    return "masked_dense" not in execution_of(row.record or {}).split("+")


def twin_of(spec: TrialSpec) -> TrialSpec:
    """The dense twin of ``spec`` where the sweep names none: its activation and optimizer are kept."""
    dense = {"layer": PluginRef(name="dense"), "method": Method(), "density": 1.0, "narrow_to_density": None, "start": None}
    return spec.model_copy(update=dense)


def rival_of(spec: TrialSpec, twin: TrialSpec) -> TrialSpec | None:
    """The twin narrowed to the trainable parameters that ``spec`` has; None if nothing of it is sparse."""
    if not spec.is_sparse:
        return None
    kept = Method(keep_dense=spec.method.keep_dense)
    return twin.model_copy(update={"method": kept, "narrow_to_density": spec.density})


def execution_of(record: Mapping[str, Any]) -> str:
    """How the trained network computes, e.g. ``sparse_csr``; several kinds are joined by ``+``; ``dense`` beside a sparse one is left out."""
    kinds = {layer["execution"] for layer in record["counts"]["layers"]}
    return "+".join(sorted(kinds - {"dense"})) or "dense"


def harness_digest() -> str:
    """Digest of the code that times; every key of a timing holds it."""
    return module_digest("sparsefleet.measure.run")


_Specs = tuple[TrialSpec, TrialSpec, "TrialSpec | None"]
_How = tuple[Op, int, tuple[str, ...]]


def config_key(row: TrialLike, specs: _Specs, how: _How, code: Mapping[str, str]) -> str:
    """What the timing is stored under: the digest of everything that decides it.

    Args:
        specs: of the timed network, its dense twin and its rival.
        how: op, batch size, and forms of the dense nets.
        code: digests of the code of all three.
    """
    op, batch_size, baselines = how
    record = row.record or {}
    counts, device = record["counts"], record["device"]
    spec, twin, rival = specs
    sides = [(spec, counts["layers"]), (twin, []), *([(rival, [])] if rival else [])]
    rewires = op == "step" and spec.method.rewirer is not None
    return digest(
        {
            "protocol": PROTOCOL,
            "harness": harness_digest(),
            "code": dict(sorted(code.items())),
            "data": spec.dataset.model_dump(mode="json"),
            "sides": [[*_architecture(side), [_layer(layer) for layer in layers]] for side, layers in sides],
            "topology": [spec.method.model_dump(mode="json"), spec.connectivity.model_dump(mode="json"), spec.density],
            "precision": [spec.train.precision, twin.train.precision],
            "device": device["class"],
            "threads": device["threads"],
            "batch": batch_size,
            "op": op,
            "baselines": sorted(baselines),
            "step": [_step(spec), _step(twin), _steps(record) if rewires else None] if op == "step" else None,
        }
    )


def _job(row: TrialLike, specs: _Specs, how: _How, code: Mapping[str, str]) -> MeasureJob:
    record = row.record or {}
    op, batch_size, baselines = how
    execution, counts = execution_of(record), record["counts"]
    spec, twin, rival = specs
    return MeasureJob(
        config_key=config_key(row, specs, how, code),
        keys=(row.key,),
        representative=row.key,
        spec=spec,
        twin=twin,
        rival=rival,
        op=op,
        batch_size=batch_size,
        baselines=baselines,
        device=record["device"]["device"],
        threads=record["device"]["threads"],
        execution=execution,
        versus_dense=_enters_speedups(row),
        params=counts.get("params", 0),
        dense_params=counts["total_params_model"],
        steps=_steps(record),
    )


def _steps(record: Mapping[str, Any]) -> tuple[int, int]:
    """Steps of the training, and of one epoch."""
    accuracy = record.get("accuracy") or {}
    steps, epochs = accuracy.get("steps") or 1000, accuracy.get("epochs") or 1
    return steps, max(1, steps // epochs)


def _architecture(spec: TrialSpec) -> list[Any]:
    """What the spec says of the network's shape; two specs with equal ones are timed alike when both are dense."""
    sparse = [spec.layer.model_dump(mode="json"), list(spec.method.keep_dense)] if spec.is_sparse else ["dense"]
    return [spec.model.model_dump(mode="json"), spec.activation.model_dump(mode="json"), spec.narrow_to_density, sparse]


def _layer(layer: Mapping[str, Any]) -> list[Any]:
    return [layer["name"], list(layer["shape"]), layer["execution"], layer["nnz_asked"]]


def _step(spec: TrialSpec) -> list[Any]:
    """What of the optimizer and the loss decides how long a step takes: switches, not values."""
    optimizer: Optimizer = spec.optimizer
    switches = {name: bool(value) for name, value in optimizer.model_dump(exclude={"kind", "lr", "betas", "eps", "alpha"}).items()}
    return [optimizer.kind, switches, spec.train.weight_decay > 0, spec.train.label_smoothing > 0]
