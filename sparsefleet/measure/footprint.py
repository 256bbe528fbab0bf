"""Memory of one side, alone in a fresh process: what it holds, what it needs at its peak, and what the conversion to it costs."""

from __future__ import annotations

from sparsefleet.measure.memory import conversion, peak_of
from sparsefleet.measure.passes import MeasureRequest
from sparsefleet.measure.sides import batches, side
from sparsefleet.plugin import Dataset
from sparsefleet.registry import Registry
from sparsefleet.sparsity.bytes import resident_bytes
from sparsefleet.trial.build import build_network, load_network

_CALLS = 3
"""The first allocates the optimizer's slots, the second is as any other, the third is one more."""


def footprint(request: MeasureRequest) -> dict[str, float | str]:
    """Figures of the ``memory`` of a timing; of the sparse side with ``prepare_s`` and ``prepare_peak_bytes``.

    ``peak_bytes`` is what the network's storages hold, counted, plus what the process needs beyond that while it computes, measured.
    """
    job, registry = request.job, Registry()
    dataset: Dataset = registry.build("dataset", job.spec.dataset)
    sparse = request.part.side == "sparse"
    spec = job.spec if sparse else job.twin
    if sparse:
        network = load_network(spec, request.model, request.masks, registry=registry, device=job.device)
    else:
        network = build_network(spec, registry=registry, device=job.device)
    inputs = batches(dataset, spec, job.batch_size, job.device)
    call = side(job.op, network.module, spec, dataset.info)
    held = sum(resident_bytes(network.module).values())

    def calls() -> None:
        for i in range(_CALLS):
            call(inputs[i % len(inputs)])

    _, peak = peak_of(calls, job.device)
    if peak.bytes is None:
        return {"why_not": peak.why_not}
    found: dict[str, float | str] = {"peak_bytes": float(held + peak.bytes), "peak_kind": peak.kind, "held_bytes": float(held)}
    for name in ("reserved_bytes", "process_bytes"):
        value = getattr(peak, name)
        if value is not None:
            found[name] = float(value)
    if sparse and network.sparse and job.versus_dense:
        seconds, cost = conversion(network, spec, registry, job.device)
        found["prepare_s"] = seconds
        if cost.bytes is not None:
            found["prepare_peak_bytes"] = float(cost.bytes)
    return found
