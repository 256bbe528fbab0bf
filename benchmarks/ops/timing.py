"""A peer beside ours under the product's estimator: same matrix, same inputs, same rounds, in random order.

In a round: the peer (D), ours with the layout kept (S), the peer again (E, the control) and ours with transposes in and out (R). A ratio above
1 says that ours is faster. What is slow gets few rounds, and the verdict says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from benchmarks.figures import NotRun
from benchmarks.ops.cases import FEATURE_MAJOR, MAIN, OPS, ROW_MAJOR, Shape
from benchmarks.ops.peers import OURS, Kind
from benchmarks.ops.problem import N_INPUTS, Problem
from benchmarks.ops.sides import Inputs, Side
from sparsefleet.measure.clock import Clock
from sparsefleet.measure.estimate import Plan, compare
from sparsefleet.measure.ratios import Estimate, Ratio
from sparsefleet.measure.verdict import judge

LONGEST_CALL_S = 5.0
SLOW_CALL_S = 3.0
"""From here on only forward and forward + backward are compared; the rest is the median of a few calls."""
ENOUGH_ROUNDS, FEW_ROUNDS, FEW_CALLS = 24, 7, 3
"""Rounds that can earn a verdict although some are dropped; rounds that cannot, and calls, of what is too slow for that."""
SECOND_COPY_BYTES = 1 << 30
"""A peer that needs more has no second copy: D and E are the same, whose place in memory does not matter at that size."""
_RACE_S = 0.2


class Wrong(Exception):
    """A side's output or gradient is not that of the float64 reference."""


@dataclass(frozen=True)
class Effort:
    """How much time a comparison may take.

    Attributes:
        budget_s: for forward + backward; half of it for each other operation.
        patience_s: how long ``ENOUGH_ROUNDS`` may take; where they would take longer there are ``FEW_ROUNDS``.
        rounds: at most.
    """

    budget_s: float = 16.0
    patience_s: float = 120.0
    rounds: int = 50
    warmup_s: float = 3.0

    def plan(self, key: str, op: str, pair_s: float) -> Plan:
        """The plan for an operation, two calls of which take ``pair_s``."""
        share = 1.0 if op == MAIN else 0.5
        enough = ENOUGH_ROUNDS * pair_s <= self.patience_s * (1.0 if op == MAIN else 0.3)
        few = min(FEW_ROUNDS, self.rounds)
        return Plan(
            f"{key}|{op}",
            rounds=self.rounds,
            min_rounds=min(ENOUGH_ROUNDS, self.rounds) if enough else few,
            budget_s=share * self.budget_s,
            warmup_cap_s=share * self.warmup_s,
        )


QUICK = Effort(budget_s=1.0, patience_s=2.0, rounds=3, warmup_s=0.3)


def against(problem: Problem, kind: Kind, clock: Clock, key: str, effort: Effort, say: Callable[[str], None]) -> dict[str, Any]:
    """Times, ratios and verdicts of a peer; the times of ours in the same rounds stand beside them.

    Raises:
        Wrong: a side is not what the float64 reference says.
        NotRun: one call takes too long.
    """
    kept, transposed = (side_of(problem, OURS, layout) for layout in (FEATURE_MAJOR, ROW_MAJOR))
    errors = {"ours": max(right("ours", side) for side in (kept, transposed))}
    if kind is OURS:
        peer, rival = transposed, None
    else:
        peer, rival = _fastest_layout(problem, kind), transposed
        errors["peer"] = right("the peer", peer)
    once = seconds_of(lambda: peer.both(1))
    if once > LONGEST_CALL_S:
        raise NotRun(f"one forward + backward takes {once:.0f} s, more than {LONGEST_CALL_S:.0f} s")
    second = _second(problem, kind, peer)
    found: dict[str, Any] = {"layout": peer.inputs.layout, "errors": errors, "ops": {}}
    for op in OPS:
        sides, plan = (peer, kept, second, rival), effort.plan(key, op, 2 * once)
        is_slow = once > SLOW_CALL_S and op in ("backward", "step")
        rounds = FEW_CALLS / 2 if is_slow else plan.min_rounds
        say(f"{op}, about {2 * rounds * once:.0f} s" if once > 1 else op)
        found["ops"][op] = _few_calls(op, sides) if is_slow else _compared(op, sides, plan, clock)
        for side in (peer, kept, second, rival):
            if side is not None:
                side.forget()
    return found


def side_of(problem: Problem, kind: Kind, layout: str) -> Side:
    """A peer with inputs of its own."""
    return Side(kind.make(problem.conn), Inputs(problem, kind, layout))


def right(name: str, side: Side) -> float:
    """The side's error over what it is allowed.

    Raises:
        Wrong: above 1.
    """
    error = side.error()
    if error > 1:
        raise Wrong(f"{name} is wrong ({side.inputs.layout}): {error:.3g} times the error allowed against float64")
    return error


def _fastest_layout(problem: Problem, kind: Kind) -> Side:
    """The peer in the layout that suits it, by a short race of forward + backward."""
    sides = [side_of(problem, kind, layout) for layout in kind.layouts]
    if len(sides) == 1:
        return sides[0]
    times = []
    for side in sides:
        side.both(0)
        times.append(best_of(lambda side=side: side.both(1)))
    return sides[times.index(min(times))]


def _second(problem: Problem, kind: Kind, peer: Side) -> Side:
    """Another copy of the peer, so that the control sees what a place in memory does."""
    n_out, n_in = problem.conn.shape
    shape = Shape(n_in, n_out, problem.conn.nnz / (n_out * n_in))
    if kind.needs(shape, problem.inputs[0].shape[0]) > SECOND_COPY_BYTES:
        return peer
    return Side(kind.make(problem.conn), peer.inputs)


def _compared(op: str, sides: tuple[Side, Side, Side, Side | None], plan: Plan, clock: Clock) -> dict[str, Any]:
    *calls, rival = (None if side is None else side.call(op) for side in sides)
    peer, kept, second = (call for call in calls if call is not None)
    estimate, _ = compare(peer, kept, second=second, rival=rival, inputs=range(N_INPUTS), plan=plan, clock=clock)
    found = {
        "ms": 1e3 * estimate.dense_s["median"],
        "ours_ms": 1e3 * estimate.sparse_s["median"],
        **_judged(estimate, estimate.vs_dense, estimate.sparse_s, clock.threads),
        "rounds": estimate.rounds,
        "kept": estimate.kept,
        "aa_ratio": estimate.aa_ratio,
    }
    if estimate.rival_vs_dense is not None:
        judged = _judged(estimate, estimate.rival_vs_dense, estimate.rival_s, clock.threads)
        found["ours_row_major_ms"] = 1e3 * estimate.rival_s["median"]
        found |= {f"row_major_{name}": value for name, value in judged.items()}
    return found


def _judged(estimate: Estimate, ratio: Ratio, ours_s: dict[str, float], threads: int) -> dict[str, Any]:
    """Ratio, interval and verdict; where every round was disturbed the ratio of the medians, which has no interval and earns no verdict."""
    verdict, reasons = judge(estimate, "screen", threads, ratio=ratio)
    value = estimate.dense_s["median"] / ours_s["median"] if ratio.value is None else ratio.value
    return {"ratio": value, "ci": ratio.ci95, "verdict": verdict, "reasons": reasons}


def _few_calls(op: str, sides: tuple[Side, Side, Side, Side | None]) -> dict[str, Any]:
    """Medians of a few calls: a figure, and no comparison."""
    peer, kept, _, _ = sides
    times = [1e3 * median(seconds_of(lambda: side.call(op)(1)) for _ in range(FEW_CALLS)) for side in (peer, kept)]  # noqa: B023
    return {"ms": times[0], "ours_ms": times[1], "ratio": None, "ci": None, "verdict": "NONE", "reasons": [f"{FEW_CALLS} calls only"]}


def best_of(call: Callable[[], object]) -> float:
    """Least seconds of several calls, of one if that takes long."""
    begun, found = time.perf_counter(), [seconds_of(call)]
    while time.perf_counter() - begun < _RACE_S:
        found.append(seconds_of(call))
    return min(found)


def seconds_of(call: Callable[[], object]) -> float:
    """Of one call, until the device is done."""
    begun = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun
