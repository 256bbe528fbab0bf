"""The one estimator of the product: how much faster one callable is than another, with an interval and a control.

Steps 3 to 9 of protocol ``sf-measure/1``: warm-up until steady; blocks long enough for the clock; a number of rounds fixed before the
first of them; each round times dense (D), sparse (S), a second dense copy (E) and, where there is one, the small-dense rival (R) in random
order over rotating inputs; disturbed rounds are set aside by a rule that looks at CPU time, never at the result. Speed-up =
exp(median(log(sqrt(D * E) / S))) with a 95 % percentile bootstrap; D / E is the machine's own confession of noise. Of several processes the
figure is the geometric mean of their speed-ups, and the bootstrap draws processes, then rounds.
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
from statistics import fmean, median
from typing import Any, Protocol

import numpy as np

from sparsefleet.errors import UserError
from sparsefleet.measure.clock import Call, Clock, Machine, Reading, clock_for, tick_s
from sparsefleet.measure.contention import drop_reasons
from sparsefleet.measure.samples import LETTERS, RIVAL, SIDES, Samples, letters

RESAMPLES = 5000
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
        speedup: dense over sparse; None if a process kept no round.
        ci95: its percentile bootstrap interval; None below ``MIN_KEPT_FOR_INTERVAL`` kept rounds.
        rival_speedup: rival over sparse; None without a rival.
        rival_vs_dense: dense over rival; None without a rival.
        aa_ratio: the first dense copy over the second: 1 on a quiet machine; of the process where it is furthest from 1, since opposite errors
            of two processes must not cancel. From all rounds if none was kept.
        drift: median log-ratio of the last third of the kept rounds over that of the first third, as a ratio; of the process that drifted most.
        least_kept: kept rounds of the process that kept the fewest, and their share.
        between: largest over smallest speed-up of the processes, minus 1; None for one process.
        cpus_used: CPUs that the process used during the blocks of a side, median; empty where the clock cannot tell.
        dropped: number of dropped rounds by reason.
    """

    speedup: float | None
    ci95: tuple[float, float] | None
    rival_speedup: float | None
    rival_ci95: tuple[float, float] | None
    rival_vs_dense: float | None
    rival_vs_dense_ci95: tuple[float, float] | None
    aa_ratio: float
    drift: float
    dense_s: dict[str, float]
    sparse_s: dict[str, float]
    second_s: dict[str, float]
    rival_s: dict[str, float]
    rounds: int
    kept: int
    least_kept: tuple[int, float]
    processes: int
    between: float | None
    cpus_used: dict[str, float]
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def half_width(self) -> float | None:
        """Half the interval's width relative to the speed-up."""
        return half_width(self.speedup, self.ci95)


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
        machine=[[row.wall_s, row.own_s, row.busy_s, row.steal_s] for row in machine if row is not None],
        rounds_because=because,
        warmup=warmup,
    )
    samples = replace(samples, dropped=drop_reasons(samples))
    return recompute(samples), samples


@dataclass(frozen=True)
class _Logs:
    """Log-ratios of one process's usable rounds, and whether they are kept ones."""

    kept: bool
    speedup: list[float]
    rival: list[float]
    small: list[float]
    control: list[float]
    seconds: dict[str, list[float]]
    reasons: list[str]


def recompute(*processes: Samples) -> Estimate:
    """The estimate from raw samples alone: the same digits wherever it is computed."""
    logs = [_logs(samples) for samples in processes]
    counts = [sum(not reason for reason in one.reasons) for one in logs]
    all_kept = all(one.kept for one in logs)
    points = [median(one.speedup) for one in logs]
    key, seconds = processes[0].key, {side: [v for one in logs for v in one.seconds[side]] for side in processes[0].sides}
    has_rival = all_kept and RIVAL in seconds
    summaries = {side: _summary(values) for side, values in seconds.items()}
    return Estimate(
        speedup=math.exp(fmean(points)) if all_kept else None,
        ci95=bootstrap([one.speedup for one in logs], f"{key}|speedup") if all_kept else None,
        rival_speedup=math.exp(fmean(median(one.rival) for one in logs)) if has_rival else None,
        rival_ci95=bootstrap([one.rival for one in logs], f"{key}|rival") if has_rival else None,
        rival_vs_dense=math.exp(fmean(median(one.small) for one in logs)) if has_rival else None,
        rival_vs_dense_ci95=bootstrap([one.small for one in logs], f"{key}|rival vs dense") if has_rival else None,
        aa_ratio=math.exp(max((median(one.control) for one in logs), key=abs)),
        drift=math.exp(max((_drift(one.speedup) for one in logs), key=abs)),
        dense_s=summaries["dense"],
        sparse_s=summaries["sparse"],
        second_s=summaries["second"],
        rival_s=summaries.get(RIVAL, {}),
        rounds=sum(samples.rounds for samples in processes),
        kept=sum(counts),
        least_kept=min((kept, kept / samples.rounds) for kept, samples in zip(counts, processes, strict=True)),
        processes=len(processes),
        between=math.exp(max(points) - min(points)) - 1 if len(points) > 1 else None,
        cpus_used=_cpus_used(processes),
        dropped=dict(sorted(Counter(reason for one in logs for reason in one.reasons if reason).items())),
    )


def _logs(samples: Samples) -> _Logs:
    reasons = drop_reasons(samples)
    kept = [i for i, reason in enumerate(reasons) if not reason]
    usable = kept or [i for i, reason in enumerate(reasons) if reason != "no_time"]
    if not usable:
        raise UserError("no block took any time", cause="the clock is too coarse for what was timed", fix="time more work per call")
    seconds = {side: [samples.per_call(side)[i] for i in usable] for side in samples.sides}
    d, s, e = (seconds[side] for side in SIDES)
    return _Logs(
        kept=bool(kept),
        speedup=[math.log(math.sqrt(a * c) / b) for a, b, c in zip(d, s, e, strict=True)],
        rival=[math.log(a / b) for a, b in zip(seconds.get(RIVAL, ()), s, strict=False)],
        small=[math.log(math.sqrt(a * c) / b) for a, b, c in zip(d, seconds.get(RIVAL, ()), e, strict=False)],
        control=[math.log(a / c) for a, c in zip(d, e, strict=True)],
        seconds=seconds,
        reasons=reasons,
    )


def _drift(logs: Sequence[float]) -> float:
    third = max(1, len(logs) // 3)
    return median(logs[-third:]) - median(logs[:third])


def _cpus_used(processes: Sequence[Samples]) -> dict[str, float]:
    used: dict[str, list[float]] = {}
    for samples in processes:
        for side, values in samples.process_s.items():
            pairs = zip(values, samples.seconds[side], strict=True)
            used.setdefault(side, []).extend(cpu / wall for cpu, wall in pairs if wall > 0)
    return {side: median(values) for side, values in used.items() if values}


def half_width(value: float | None, bounds: tuple[float, float] | None) -> float | None:
    """Half the width of ``bounds`` relative to ``value``; None where either is missing."""
    return None if value is None or bounds is None else (bounds[1] - bounds[0]) / 2 / value


def bootstrap(groups: Sequence[Sequence[float]], key: str) -> tuple[float, float] | None:
    """95 % percentile interval of exp(mean over the groups of their medians), or None for too few values.

    Each of 5000 resamples draws as many groups as there are, with replacement, and of each drawn group as many values as it has. Only the
    raw stream of PCG64 is used, which numpy keeps stable from version to version, unlike its distributions.
    """
    if min(map(len, groups)) < MIN_KEPT_FOR_INTERVAL:
        return None
    stream, n_groups = _stream(key), len(groups)
    chosen = (
        (stream.random_raw(RESAMPLES * n_groups) % np.uint64(n_groups)).astype(np.int64).reshape(RESAMPLES, n_groups)
        if n_groups > 1
        else np.zeros((RESAMPLES, 1), np.int64)
    )
    medians = np.empty((RESAMPLES, n_groups))
    for place in range(n_groups):
        drawn = np.stack([_medians(logs, stream) for logs in groups])  # (groups, RESAMPLES)
        medians[:, place] = drawn[chosen[:, place], np.arange(RESAMPLES)]
    means = np.sort(medians.sum(axis=1) / n_groups).tolist()
    return math.exp(quantile(means, 0.025)), math.exp(quantile(means, 0.975))


def _medians(logs: Sequence[float], stream: np.random.PCG64) -> np.ndarray[Any, np.dtype[np.float64]]:
    """``(RESAMPLES,)``: medians of resamples of ``logs``."""
    n, ordered = len(logs), np.sort(np.asarray(logs, dtype=np.float64))
    ranks = (stream.random_raw(RESAMPLES * n) % np.uint64(n)).astype(np.uint16).reshape(RESAMPLES, n)
    ranks.sort(axis=1)  # sorting ranks is sorting values, and small integers sort fast
    return (ordered[ranks[:, (n - 1) // 2]] + ordered[ranks[:, n // 2]]) / 2  # type: ignore[no-any-return]


def draw_order(key: str, rounds: int, sides: str = "DSE") -> list[str]:
    """Per round, an order of the sides: every so many rounds as there are orders hold all of them, shuffled, so that no side owns a place."""
    orders = ["".join(order) for order in itertools.permutations(sides)]
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
    sides: dict[str, Call], inputs: Sequence[Any], clock: Clock, order: list[str], calls: dict[str, int], watch: Watch | None
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
