"""Memory of one side, alone in a fresh process: what it holds, what it needs at its peak, and what the conversion to it costs.

The dense side is measured in the form that is the baseline of the time, eager or compiled.
"""

from __future__ import annotations

from sparsefleet.measure.baseline import COMPILED, EAGER, compiled
from sparsefleet.measure.memory import conversion, peak_of
from sparsefleet.measure.passes import MeasureRequest
from sparsefleet.measure.sides import Step, batches, side
from sparsefleet.plugin import Dataset
from sparsefleet.registry import Registry
from sparsefleet.sparsity.bytes import resident_bytes
from sparsefleet.trial.build import build_network, load_network

_WARM_CALLS = 2
"""They allocate the optimizer's slots and load the code that computes, which is nobody's working memory."""


def footprint(request: MeasureRequest) -> dict[str, float | str]:
    """Figures of the ``memory`` of a timing; of the sparse side with ``prepare_s`` and ``prepare_peak_bytes``.

    ``peak_bytes`` is what the network and its optimizer hold between two calls, counted, plus what one call needs beyond that, measured.
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
    form = next((one.name for one in request.chosen.get("dense", ()) if not one.why_not), EAGER)
    call = side(
        job.op, network.module, spec, dataset.info, compiled(network.module, job.threads) if not sparse and form == COMPILED else None
    )
    for i in range(_WARM_CALLS):
        call(inputs[i])
    call.last = None
    if isinstance(call, Step):
        call.optimizer.zero_grad(set_to_none=True)
    held = sum(resident_bytes(network.module, call.optimizer if isinstance(call, Step) else None).values())
    _, peak = peak_of(lambda: call(inputs[_WARM_CALLS]), job.device)
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
