"""How much of what this machine could do at best ours reaches, forward and backward apart."""

from __future__ import annotations

from typing import Any

from torch import nn

from benchmarks.ops.peers import OURS
from benchmarks.ops.problem import Problem
from benchmarks.ops.timing import Wrong
from sparsefleet.measure.cost import cost
from sparsefleet.measure.limits import SLACK, limit
from sparsefleet.measure.peaks import peaks


def of_limit(problem: Problem, device: str, threads: int, ops: dict[str, Any]) -> dict[str, Any]:
    """The limit's time, what decides it, the percent of it that ours reached, and the verdict on ours' timing; by direction.

    Raises:
        Wrong: faster than the limit, also after the limits were measured again: the model or the measurement is wrong.
    """
    module = OURS.make(problem.conn).module
    assert module is not None
    network, x = nn.Sequential(module), problem.inputs[0].clone().requires_grad_()
    alone, step = (cost(network, x, op, "sgd", "fp32") for op in ("forward", "step"))  # type: ignore[arg-type]
    for refresh in (False, True):
        rates = peaks(device, threads, refresh=refresh)
        forward, first, both = limit(alone, rates, "forward"), limit(step, rates, "forward"), limit(step, rates, "step")
        (layer,) = both.layers  # the optimizer is not timed here
        limits = {"forward": (forward.seconds, forward.bound), "backward": (layer.seconds - first.seconds, layer.bound)}
        found = {
            name: {
                "limit_ms": 1e3 * seconds,
                "bound": bound,
                "percent": 1e5 * seconds / ops[name]["ours_ms"],
                **{word: ops[name][word] for word in ("verdict", "reasons")},
            }
            for name, (seconds, bound) in limits.items()
        }
        above = [f"{name} at {row['percent']:.0f} %" for name, row in found.items() if row["percent"] > 100 * SLACK]
        if not above:
            return found
    raise Wrong(f"ours is faster than this machine's limit: {', '.join(above)}; the count of the work or the measurement is wrong")
