"""The comparison under the clock: how much faster one callable is than another, with an interval and a control.

Steps 3 to 6 of protocol ``sf-measure/1``: warm-up until steady; blocks long enough for the clock; a number of rounds fixed before the
first of them; each round times dense (D), sparse (S), a second dense copy (E) and, where there is one, the small-dense rival (R) in random
order over rotating inputs; disturbed rounds are set aside by a rule that looks at CPU time, never at the result. What the samples say is in
``ratios``.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Protocol

from sparsefleet.errors import UserError
from sparsefleet.measure.clock import Call, Clock, Machine, Reading, clock_for, tick_s
from sparsefleet.measure.contention import drop_reasons
from sparsefleet.measure.draws import draw_order
from sparsefleet.measure.ratios import Estimate as Estimate, recompute as recompute
from sparsefleet.measure.samples import LETTERS, PLAIN, RIVAL, SIDES, UPDATE, Samples, letters
from sparsefleet.measure.verdict import SCREEN

_COLD_UPDATES = 2
"""The first updates of a process find cold code and enter no figure."""


@dataclass(frozen=True)
class Plan:
    """How to sample.

    Attributes:
        key: seeds the order of the sides and the bootstrap, so that anyone can repeat both.
        rounds: fixed before the first round.
        budget_s: if the rounds would take longer by the warm-up's estimate, there are fewer of them; decided before the first round.
        min_rounds: never fewer than this, however long it takes.
        warmup_cap_s: the warm-up ends here even if the times have not settled.
    """

    key: str
    rounds: int = 50
    min_rounds: int = SCREEN.rounds
    budget_s: float | None = None
    warmup_cap_s: float = 3.0
    min_warmup_calls: int = 10
    steady_within: float = 0.02
    longest_block: float = 20.0
    """Equal call counts are given up where they make the slower side's block this many times the least length."""


class Watch(Protocol):
    """Looks on outside the clock."""

    def before_round(self, index: int) -> None:
        """Called before each round, warm-up excluded."""

    def after_block(self, side: str, index: int, last_input: int) -> None:
        """Called after each block; ``last_input`` is the position of the input of its last call."""


def compare(
    dense: Call,
    sparse: Call,
    *,
    inputs: Sequence[Any],
    plan: Plan,
    second: Call | None = None,
    rival: Call | None = None,
    clock: Clock | None = None,
    watch: Watch | None = None,
) -> tuple[Estimate, Samples]:
    """Times ``dense`` against ``sparse`` and returns the estimate with the raw samples it can be recomputed from.

    Args:
        dense: called with one of ``inputs``.
        sparse: likewise.
        inputs: rotated from call to call; all sides of a round start with the same one.
        plan: how to sample.
        second: a second copy of dense for the control; default: ``dense`` itself, which cannot show effects of memory placement.
        rival: a fourth side that sparse is compared with too.
        clock: default: the CPU's, for torch's number of threads.
        watch: looks on between the blocks.
    """
    if not inputs:
        raise UserError("nothing to time: no inputs")
    clock = clock or clock_for("cpu")
    sides = dict(zip(SIDES, (dense, sparse, second or dense), strict=True))
    if rival is not None:
        sides[RIVAL] = rival
    with _no_garbage_collection():
        warmup, calls = _warm_up(sides, inputs, clock, plan)
        samples = _take(sides, inputs, clock, plan, (calls, warmup), watch)
    return recompute(samples), samples


def compare_updates(plain: Call, update: Call, *, inputs: Sequence[Any], plan: Plan, clock: Clock) -> Samples:
    """Raw samples of what updates of the topology cost: blocks without one and blocks with them, in turn, as ``compare`` takes them.

    Args:
        plain: one call without an update.
        update: a call with an update, and the next one, which pays for what the update left behind.
    """
    with _no_garbage_collection():
        *cold, pair = (clock.time(update, inputs, i, 1).seconds for i in range(_COLD_UPDATES + 1))
        n = max(1, math.ceil(clock.block_s / max(pair, 1e-9)))
        warmup = {"seconds": sum(cold) + pair, f"{PLAIN}_s": pair / 2, f"{UPDATE}_s": pair}
        return _take({PLAIN: plain, UPDATE: update}, inputs, clock, plan, ({PLAIN: 2 * n, UPDATE: n}, warmup), None)


_Warm = tuple[dict[str, int], dict[str, float]]
"""Calls per block, and what the warm-up found out."""


def _take(sides: Mapping[str, Call], inputs: Sequence[Any], clock: Clock, plan: Plan, warm: _Warm, watch: Watch | None) -> Samples:
    """Raw samples of the planned rounds, after the warm-up."""
    calls, warmup = warm
    rounds, because = _rounds(plan, calls, warmup)
    order = draw_order(plan.key, rounds, letters(tuple(sides)))
    readings, machine = _sample(sides, inputs, clock, order, calls, watch)
    samples = Samples(
        key=plan.key,
        clock=clock.kind,
        threads=clock.threads,
        n_cpus=clock.n_cpus,
        tick_s=tick_s(),
        inputs=len(inputs),
        calls=calls,
        order=order,
        seconds={side: [reading.seconds for reading in readings[side]] for side in sides},
        cpu_s=_column(readings, "cpu_s"),
        process_s=_column(readings, "process_s"),
        mhz=_column(readings, "mhz"),
        mhz_rated=clock.mhz_rated,
        machine=[[row.wall_s, row.own_s, row.busy_s, row.steal_s] for row in machine if row is not None],
        rounds_because=because,
        warmup=warmup,
    )
    return replace(samples, dropped=drop_reasons(samples))


def _warm_up(sides: dict[str, Call], inputs: Sequence[Any], clock: Clock, plan: Plan) -> tuple[dict[str, float], dict[str, int]]:
    """Runs blocks of each side until their times have settled; what it took, and the calls per block that follow."""
    calls = dict.fromkeys(sides, 1)
    done = dict.fromkeys(sides, 0)
    times: dict[str, list[float]] = {side: [] for side in sides}
    spent, steady = 0.0, False
    while not steady:
        for side, call in sides.items():
            seconds = clock.time(call, inputs, done[side], calls[side]).seconds
            spent += seconds
            done[side] += calls[side]
            times[side].append(seconds / calls[side])
            wanted = math.ceil(clock.block_s / max(times[side][-1], 1e-9))
            calls[side] = max(1, min(wanted, 10 * calls[side]))
        steady = all(_is_steady(times[side], plan) and done[side] >= plan.min_warmup_calls for side in sides)
        if spent >= plan.warmup_cap_s and len(times["dense"]) >= 2:
            break
    per_call = {side: median(values[1:][-5:]) for side, values in times.items()}  # the first call pays for start-up
    warmup = {"seconds": spent, "steady": float(steady)}
    warmup |= {f"{side}_calls": float(done[side]) for side in sides} | {f"{side}_s": per_call[side] for side in sides}
    return warmup, _calls(per_call, clock, plan)


def _is_steady(times: list[float], plan: Plan) -> bool:
    if len(times) < 10:
        return False
    before, now = median(times[-10:-5]), median(times[-5:])
    return abs(now - before) <= plan.steady_within * before


def _calls(per_call: dict[str, float], clock: Clock, plan: Plan) -> dict[str, int]:
    """Calls per block: equal on all sides unless that makes one side's block needlessly long; D and E are always equal."""
    dense = max(1e-9, (per_call["dense"] + per_call["second"]) / 2)
    sparse = max(1e-9, per_call["sparse"])
    own = {"dense": math.ceil(clock.block_s / dense), "sparse": math.ceil(clock.block_s / sparse)}
    equal = max(own.values())
    if equal * max(dense, sparse) <= plan.longest_block * clock.block_s:
        own = dict.fromkeys(own, equal)
    if RIVAL in per_call:
        own[RIVAL] = math.ceil(clock.block_s / max(1e-9, per_call[RIVAL]))
    return {**own, "second": own["dense"]}


def _rounds(plan: Plan, calls: dict[str, int], warmup: dict[str, float]) -> tuple[int, str]:
    expected = sum(n * warmup[f"{side}_s"] for side, n in calls.items())
    if plan.budget_s is None or plan.rounds * expected <= plan.budget_s:
        return plan.rounds, "as planned"
    rounds = min(plan.rounds, max(plan.min_rounds, int(plan.budget_s / expected)))
    return rounds, f"{plan.rounds} rounds of {expected:.3g} s by the warm-up exceed the budget of {plan.budget_s:.3g} s"


def _sample(
    sides: Mapping[str, Call], inputs: Sequence[Any], clock: Clock, order: list[str], calls: dict[str, int], watch: Watch | None
) -> tuple[dict[str, list[Reading]], list[Machine | None]]:
    readings: dict[str, list[Reading]] = {side: [] for side in sides}
    machine = [clock.machine()]
    for i, drawn in enumerate(order):
        if watch:
            watch.before_round(i)
        for letter in drawn:
            side = LETTERS[letter]
            readings[side].append(clock.time(sides[side], inputs, i, calls[side]))
            if watch:
                watch.after_block(side, i, (i + calls[side] - 1) % len(inputs))
        machine.append(clock.machine())
    return readings, machine


def _column(readings: dict[str, list[Reading]], name: str) -> dict[str, list[float]]:
    columns = {side: [getattr(reading, name) for reading in row] for side, row in readings.items()}
    return {} if any(value is None for row in columns.values() for value in row) else columns


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
