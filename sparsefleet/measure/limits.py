"""The least time that this machine could take for what a network must compute and move.

For one pass over a layer's weights, with the bytes of ``work`` and the rates of ``peaks``::

    t = max(Q_D / β_D, (Q_G + Q_indices) / β_gather, F / P, t_launch)

β_D is that of the level which holds the weights: a network that is called again and again finds those that fit into a cache there.
Activations stream at the rate of the level that their own size fits in, since the layer before has just written them. β_gather is that of
the level and row size of the activation tile, for the best width of tile: a narrow tile fits a faster cache and reads the weights more often.
A rate that was measured with its indices needs Q_G and the indices only, not the activations that stream past. Layers run one after another,
so their limits add up, and the optimizer's traffic comes on top.

The model knows one launch a layer, no biases and no activation functions, so it errs towards too fast. A measured time below it
means that the model or the measurement is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sparsefleet.measure.rates import Peaks
from sparsefleet.measure.work import Cost, LayerCost, Op, Work

Bound = Literal["dram", "gather", "compute", "launch"]
SLACK = 1.05
"""A time this much below the limit is still the scatter of two measurements."""
WINOGRAD = 4.0
"""Multiplications that a fast algorithm can save a convolution with a kernel of more than one element."""
_TILE_ROWS = (64, 256, 1024)


@dataclass(frozen=True)
class LayerLimit:
    """One layer: seconds, and which term of the model decides them."""

    name: str
    seconds: float
    bound: Bound


@dataclass(frozen=True)
class Limit:
    """A whole network.

    Attributes:
        bound: the kind of term in which most of ``seconds`` is spent; ``dram`` also names streams that a cache holds, and the optimizer.
        optimizer_s: its part of ``seconds``.
    """

    seconds: float
    bound: Bound
    layers: tuple[LayerLimit, ...]
    optimizer_s: float


def limit(cost: Cost, peaks: Peaks, op: Op) -> Limit:
    """The least seconds of ``op``; a cost counted for a step also answers for its forward pass."""
    spent: dict[Bound, float] = {"dram": 0.0, "gather": 0.0, "compute": 0.0, "launch": 0.0}
    layers = []
    for layer in cost.layers:
        works = layer.works if op == "step" else layer.works[:1]
        terms = [_dominant(_terms(work, layer, cost, peaks)) for work in works]
        for bound, seconds in terms:
            spent[bound] += seconds
        layers.append(LayerLimit(layer.name, sum(seconds for _, seconds in terms), _dominant(_summed(terms))[0]))
    optimizer_s = peaks.stream_s(cost.optimizer_bytes, cost.working_set) if op == "step" else 0.0
    spent["dram"] += optimizer_s
    return Limit(sum(spent.values()), _dominant(spent)[0], tuple(layers), optimizer_s)


def _terms(work: Work, layer: LayerCost, cost: Cost, peaks: Peaks) -> dict[Bound, float]:
    reads_only = work.what in ("forward", "grad_input")
    weights = peaks.stream_s(work.weight_bytes, cost.working_set, reads_only=reads_only)
    rate = peaks.flops.get(cost.precision) or peaks.flops["fp32"]
    return {
        "dram": weights + peaks.stream_s(work.activation_bytes, work.activation_bytes),
        "gather": _gather_s(work, peaks),
        "compute": work.flops / (WINOGRAD if layer.kernel > 1 else 1.0) / rate,
        "launch": peaks.launch_s,
    }


def _gather_s(work: Work, peaks: Peaks) -> float:
    """For the best tile: the batch is cut into tiles of ``tile`` bytes a row, each of which reads all indices and values again."""
    if not work.gathers or not work.row_bytes:
        return 0.0
    index_bytes = work.weight_bytes / work.gathers if work.what == "forward" else 8.0
    tiles = {min(tile, work.row_bytes) for tile in _TILE_ROWS} | {work.row_bytes}
    return min(
        work.row_bytes / tile * peaks.gather_s(work.gathers, tile, work.table_bytes * tile / work.row_bytes, index_bytes) for tile in tiles
    )


def _dominant(terms: dict[Bound, float]) -> tuple[Bound, float]:
    return max(terms.items(), key=lambda item: item[1])


def _summed(terms: list[tuple[Bound, float]]) -> dict[Bound, float]:
    total: dict[Bound, float] = {}
    for bound, seconds in terms:
        total[bound] = total.get(bound, 0.0) + seconds
    return total


def theory(sparse: Cost, dense: Cost | None, peaks: Peaks, op: Op) -> dict[str, Any]:
    """Counts and limits, by the keys of a timing's ``theory``; what cannot be known is left out. ``assemble`` sets the clock's figures beside.

    Args:
        dense: of the dense twin; None if there is none.
    """
    own = limit(sparse, peaks, op)
    values: dict[str, Any] = {
        "flops_sparse": sparse.flops,
        "bytes_sparse": sparse.stored_bytes,
        "limit_s": own.seconds,
        "bound": own.bound,
        "peaks_id": peaks.id,
    }
    if dense is not None:
        twin = limit(dense, peaks, op)
        values |= {
            "flops_dense": dense.flops,
            "flop_ratio": dense.flops / sparse.flops if sparse.flops else None,
            "bytes_dense": dense.stored_bytes,
            "bytes_ratio": dense.stored_bytes / sparse.stored_bytes if sparse.stored_bytes else None,
            "dense_limit_s": twin.seconds,
            "roofline_speedup": twin.seconds / own.seconds if own.seconds else None,
        }
    return {name: value for name, value in values.items() if value is not None}
