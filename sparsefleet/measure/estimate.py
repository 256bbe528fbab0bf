"""The one estimator of the product: how much faster one callable is than another, with an interval and a control.

Steps 3 to 8 of protocol ``sf-measure/1``: warm-up until steady; blocks long enough for the clock; a number of rounds fixed before the
first of them; each round times dense (D), sparse (S) and a second dense copy (E) in random order over rotating inputs; disturbed rounds
are set aside by a rule that looks at CPU time, never at the result. Speed-up = exp(median(log(sqrt(D * E) / S))) with a 95 % percentile
bootstrap; D / E is the machine's own confession of noise.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np

from sparsefleet.errors import UserError
from sparsefleet.measure.clock import Call, Clock, Machine, Reading, clock_for, tick_s
from sparsefleet.measure.contention import drop_reasons
from sparsefleet.measure.samples import SIDES, Samples

RESAMPLES = 5000
LETTERS = dict(zip("DSE", SIDES, strict=True))
MIN_KEPT_FOR_INTERVAL = 6
"""Below this a 95 % interval of a median does not exist: 2 * 0.5**5 is more than 5 %."""


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
    min_rounds: int = 20
    budget_s: float | None = None
    warmup_cap_s: float = 3.0
    min_warmup_calls: int = 10
    steady_within: float = 0.02
    longest_block: float = 20.0
    """Equal call counts are given up where they make the slower side's block this many times the least length."""


@dataclass(frozen=True)
class Estimate:
    """What the samples say; seconds are per call.

    Attributes:
        speedup: dense over sparse; None if no round was kept.
        ci95: its percentile bootstrap interval; None below ``MIN_KEPT_FOR_INTERVAL`` kept rounds.
        aa_ratio: the first dense copy over the second: 1 on a quiet machine. From all rounds if none was kept.
        drift: median log-ratio of the last third of the kept rounds over that of the first third, as a ratio.
        dropped: number of dropped rounds by reason.
    """

    speedup: float | None
    ci95: tuple[float, float] | None
    aa_ratio: float
    aa_ci95: tuple[float, float] | None
    drift: float
    dense_s: dict[str, float]
    sparse_s: dict[str, float]
    second_s: dict[str, float]
    rounds: int
    kept: int
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def half_width(self) -> float | None:
        """Half the interval's width relative to the speed-up."""
        if self.ci95 is None or self.speedup is None:
            return None
        return (self.ci95[1] - self.ci95[0]) / 2 / self.speedup


def compare(
    dense: Call, sparse: Call, *, inputs: Sequence[Any], plan: Plan, second: Call | None = None, clock: Clock | None = None
) -> tuple[Estimate, Samples]:
    """Times ``dense`` against ``sparse`` and returns the estimate with the raw samples it can be recomputed from.

    Args:
        dense: called with one of ``inputs``.
        sparse: likewise.
        inputs: rotated from call to call; all sides of a round start with the same one.
        plan: how to sample.
        second: a second copy of dense for the control; default: ``dense`` itself, which cannot show effects of memory placement.
        clock: default: the CPU's, for torch's number of threads.
    """
    if not inputs:
        raise UserError("nothing to time: no inputs")
    clock = clock or clock_for("cpu")
    sides = dict(zip(SIDES, (dense, sparse, second or dense), strict=True))
    with _no_garbage_collection():
        warmup, calls = _warm_up(sides, inputs, clock, plan)
        rounds, because = _rounds(plan, calls, warmup)
        order = draw_order(plan.key, rounds)
        readings, machine = _sample(sides, inputs, clock, order, calls)
    samples = Samples(
        key=plan.key,
        clock=clock.kind,
        n_cpus=clock.n_cpus,
        tick_s=tick_s(),
        inputs=len(inputs),
        calls=calls,
        order=order,
        seconds={side: [reading.seconds for reading in readings[side]] for side in SIDES},
        cpu_s=_column(readings, "cpu_s"),
        mhz=_column(readings, "mhz"),
        machine=[[row.wall_s, row.own_s, row.busy_s, row.steal_s] for row in machine if row is not None],
        rounds_because=because,
        warmup=warmup,
    )
    samples = replace(samples, dropped=drop_reasons(samples))
    return recompute(samples), samples


def recompute(samples: Samples) -> Estimate:
    """The estimate from raw samples alone: the same digits in every process."""
    reasons = drop_reasons(samples)
    kept = [i for i, reason in enumerate(reasons) if not reason]
    usable = kept or [i for i, reason in enumerate(reasons) if reason != "no_time"]
    if not usable:
        raise UserError("no block took any time", cause="the clock is too coarse for what was timed", fix="time more work per call")
    d, s, e = ([samples.per_call(side)[i] for i in usable] for side in SIDES)
    logs = [math.log(math.sqrt(a * c) / b) for a, b, c in zip(d, s, e, strict=True)]
    control = [math.log(a / c) for a, c in zip(d, e, strict=True)]
    third = max(1, len(logs) // 3)
    return Estimate(
        speedup=math.exp(median(logs)) if kept else None,
        ci95=bootstrap(logs, f"{samples.key}|speedup") if kept else None,
        aa_ratio=math.exp(median(control)),
        aa_ci95=bootstrap(control, f"{samples.key}|control") if kept else None,
        drift=math.exp(median(logs[-third:]) - median(logs[:third])),
        dense_s=_summary(d),
        sparse_s=_summary(s),
        second_s=_summary(e),
        rounds=samples.rounds,
        kept=len(kept),
        dropped=dict(sorted(Counter(reason for reason in reasons if reason).items())),
    )


def bootstrap(logs: Sequence[float], key: str) -> tuple[float, float] | None:
    """95 % percentile interval of exp(median(logs)) from 5000 resamples, or None for too few values.

    Only the raw stream of PCG64 is used, which numpy keeps stable from version to version, unlike its distributions.
    """
    n = len(logs)
    if n < MIN_KEPT_FOR_INTERVAL:
        return None
    ordered = np.sort(np.asarray(logs, dtype=np.float64))
    ranks = (_stream(key).random_raw(RESAMPLES * n) % np.uint64(n)).astype(np.uint16).reshape(RESAMPLES, n)
    ranks.sort(axis=1)  # sorting ranks is sorting values, and small integers sort fast
    medians = np.sort((ordered[ranks[:, (n - 1) // 2]] + ordered[ranks[:, n // 2]]) / 2).tolist()
    return math.exp(quantile(medians, 0.025)), math.exp(quantile(medians, 0.975))


def draw_order(key: str, rounds: int) -> list[str]:
    """Per round, an order of D, S and E: every six rounds hold all six orders, shuffled, so that no side owns a place."""
    orders = ["".join(order) for order in itertools.permutations("DSE")]
    stream = _stream(f"{key}|order")
    drawn: list[str] = []
    while len(drawn) < rounds:
        ranks = stream.random_raw(len(orders)).tolist()
        drawn += [order for _, order in sorted(zip(ranks, orders, strict=True))]
    return drawn[:rounds]


def quantile(ordered: Sequence[float], share: float) -> float:
    """The ``share`` quantile of ascending values, linear between neighbours."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _stream(key: str) -> np.random.PCG64:
    return np.random.PCG64(int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little"))


def _summary(values: Sequence[float]) -> dict[str, float]:
    ordered, middle = sorted(values), median(values)
    return {
        "median": middle,
        "p10": quantile(ordered, 0.1),
        "p90": quantile(ordered, 0.9),
        "mad": median(abs(value - middle) for value in values),
    }


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
    return {**own, "second": own["dense"]}


def _rounds(plan: Plan, calls: dict[str, int], warmup: dict[str, float]) -> tuple[int, str]:
    expected = sum(calls[side] * warmup[f"{side}_s"] for side in SIDES)
    if plan.budget_s is None or plan.rounds * expected <= plan.budget_s:
        return plan.rounds, "as planned"
    rounds = min(plan.rounds, max(plan.min_rounds, int(plan.budget_s / expected)))
    return rounds, f"{plan.rounds} rounds of {expected:.3g} s by the warm-up exceed the budget of {plan.budget_s:.3g} s"


def _sample(
    sides: dict[str, Call], inputs: Sequence[Any], clock: Clock, order: list[str], calls: dict[str, int]
) -> tuple[dict[str, list[Reading]], list[Machine | None]]:
    readings: dict[str, list[Reading]] = {side: [] for side in SIDES}
    machine = [clock.machine()]
    for i, letters in enumerate(order):
        for letter in letters:
            side = LETTERS[letter]
            readings[side].append(clock.time(sides[side], inputs, i, calls[side]))
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
