"""How much of what the device could do at best our product and our fused backward pass reach."""

from __future__ import annotations

from typing import Any

from benchmarks.ops.cases import Shape
from benchmarks.ops.timing import Wrong
from sparsefleet.measure.limits import SLACK, LayerLimit, limit
from sparsefleet.measure.peaks import Peaks, peaks
from sparsefleet.measure.work import Cost, LayerCost, Work

_INDEX, _VALUE = 4, 4


def works(shape: Shape, batch: int, width: int) -> dict[str, Work]:
    """What each direction must compute and move; the backward pass gathers once and gives both gradients.

    Args:
        width: bytes of an activation.
    """
    nnz, x, y = shape.nnz, shape.n_in * batch * width, shape.n_out * batch * width
    flops, run = 2 * nnz * batch, batch * width
    return {
        "forward": Work("forward", flops, nnz * (_VALUE + _INDEX), x + y, nnz, run, x),
        "backward": Work("backward", 2 * flops, nnz * (2 * _VALUE + _INDEX), 2 * x + y, nnz, run, y),
    }


def least(work: Work, shape: Shape, batch: int, rates: Peaks) -> LayerLimit:
    """The least time of one direction, and what decides it."""
    matrix = (shape.n_out, shape.n_in)
    layer = LayerCost("layer", "sparse", matrix, batch, shape.nnz, shape.sites, work.weight_bytes, 4 * shape.sites, 1, (work,))
    cost = Cost("forward", "fp32", (layer,), shape.nnz, shape.sites, work.weight_bytes, 4 * shape.sites, 0, work.weight_bytes)
    return limit(cost, rates, "forward").layers[0]


def of_limit(shape: Shape, batch: int, width: int, ms: dict[str, float], device: str, threads: int) -> dict[str, Any]:
    """By direction the limit's time, what decides it, and the percent of it that ``ms`` reached.

    Raises:
        Wrong: faster than the limit, also after the limits were measured again.
    """
    for refresh in (False, True):
        rates = peaks(device, threads, refresh=refresh)
        bounds = {name: least(work, shape, batch, rates) for name, work in works(shape, batch, width).items()}
        found = {
            name: {"ms": ms[name], "limit_ms": 1e3 * bound.seconds, "bound": bound.bound, "percent": 1e5 * bound.seconds / ms[name]}
            for name, bound in bounds.items()
        }
        above = [f"{name} at {row['percent']:.0f} %" for name, row in found.items() if row["percent"] > 100 * SLACK]
        if not above:
            return found
    raise Wrong(f"faster than this device's limit: {', '.join(above)}; the count of the work or the measurement is wrong")
