"""From trials to what is timed: a timing belongs to a configuration, not to a seed. Imports no torch.

Two trials share a timing if nothing that decides the time differs: code, shapes, model, storage, asked connections of each layer, the method
with its parameters (which decides how connections spread over units), activation, batch, dtype, device, threads, and for a training step the
optimizer's kind. The lowest seed is timed for all; its realised connections stand in the record.
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
_DECIDING_CODE = ("core", "torch", "layer/", "model/", "activation/")


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
    def record(self) -> dict[str, Any] | None:
        """The record as JSON."""


class MeasureJob(Frozen):
    """One configuration to time: one op at one batch size.

    Attributes:
        keys: every trial that the timing belongs to.
        representative: the one whose saved network is timed.
        versus_dense: False for storage that may not enter a speed-up (``masked_dense``): it is timed alone.
        dense_params: parameters of the dense twin, to tell whether it fits.
    """

    config_key: str
    keys: tuple[str, ...]
    representative: str
    spec: TrialSpec
    twin: TrialSpec
    op: Op
    batch_size: int = Field(ge=1)
    device: str
    threads: int = Field(ge=1)
    execution: str
    versus_dense: bool = True
    dense_params: int = 0


def groups(
    trials: Iterable[TrialLike], batch_sizes: Sequence[int], ops: Sequence[Op] = ("forward", "step"), *, also_masked: bool = False
) -> list[MeasureJob]:
    """One job per configuration, op and batch size; in the order in which their first trials come.

    Trials that did not succeed are left out. Dense twins get no job: their time is the dense side of the others'. Trials on ``masked``
    get none either, unless ``also_masked``; then they are timed alone, without a speed-up.
    """
    rows = [row for row in trials if row.record and row.record.get("state") == "SUCCEEDED" and row.record.get("counts")]
    specs = {row.key: TrialSpec.model_validate(row.spec) for row in rows}
    jobs: dict[str, MeasureJob] = {}
    for row in sorted(rows, key=lambda row: specs[row.key].seed):
        spec = specs[row.key]
        twin = specs.get(row.twin_key or "") or twin_of(spec)
        execution = execution_of(row.record or {})
        versus_dense = "masked_dense" not in execution.split("+")
        if _architecture(spec) == _architecture(twin) or not (versus_dense or also_masked):
            continue
        for op in ops:
            for batch_size in batch_sizes:
                job = _job(row, spec, twin, op, batch_size)
                known = jobs.get(job.config_key)
                if known:
                    job = known.model_copy(update={"keys": tuple(sorted({*known.keys, *job.keys}))})
                jobs[job.config_key] = job
    place = {row.key: i for i, row in enumerate(rows)}
    return sorted(jobs.values(), key=lambda job: min(place[key] for key in job.keys))


def twin_of(spec: TrialSpec) -> TrialSpec:
    """The dense twin of ``spec`` where the sweep names none: its activation and optimizer are kept."""
    dense = {"layer": PluginRef(name="dense"), "method": Method(), "density": 1.0, "narrow_to_density": None, "start_from": None}
    return spec.model_copy(update=dense)


def execution_of(record: Mapping[str, Any]) -> str:
    """How the trained network computes, e.g. ``sparse_csr``; several kinds are joined by ``+``; ``dense`` beside a sparse one is left out."""
    kinds = {layer["execution"] for layer in record["counts"]["layers"]}
    return "+".join(sorted(kinds - {"dense"})) or "dense"


def config_key(row: TrialLike, spec: TrialSpec, twin: TrialSpec, op: Op, batch_size: int) -> str:
    """What the timing is stored under: the digest of everything that decides it."""
    record = row.record or {}
    counts, device, code = record["counts"], record["device"], record.get("code", {})
    sides = [(spec, counts["layers"]), (twin, [])]
    return digest(
        {
            "protocol": PROTOCOL,
            "harness": module_digest("sparsefleet.measure.run"),
            "code": {name: value for name, value in sorted(code.items()) if name.startswith(_DECIDING_CODE)},
            "data": spec.dataset.model_dump(mode="json"),
            "sides": [[*_architecture(side), [_layer(layer) for layer in layers]] for side, layers in sides],
            "topology": [spec.method.model_dump(mode="json"), spec.connectivity.model_dump(mode="json"), spec.density],
            "precision": [spec.train.precision, twin.train.precision],
            "device": device["class"],
            "threads": device["threads"],
            "batch": batch_size,
            "op": op,
            "step": [_step(spec), _step(twin)] if op == "step" else None,
        }
    )


def _job(row: TrialLike, spec: TrialSpec, twin: TrialSpec, op: Op, batch_size: int) -> MeasureJob:
    record = row.record or {}
    execution = execution_of(record)
    return MeasureJob(
        config_key=config_key(row, spec, twin, op, batch_size),
        keys=(row.key,),
        representative=row.key,
        spec=spec,
        twin=twin,
        op=op,
        batch_size=batch_size,
        device=record["device"]["device"],
        threads=record["device"]["threads"],
        execution=execution,
        versus_dense="masked_dense" not in execution.split("+"),
        dense_params=record["counts"]["total_params_model"],
    )


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
