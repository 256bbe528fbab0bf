"""What raw samples say: how much faster one side is than another, with an interval, and what the machine made of it. A pure function; no torch.

Speed-up = exp(median(log(sqrt(D * E) / S))) with a 95 % percentile bootstrap; D / E is the machine's own confession of noise. Of several
processes the figure is the geometric mean of their speed-ups, and the bootstrap draws processes, then rounds. Work that happens at some calls
only (an update of the topology) is timed in blocks of its own and charged to every call: S grows by the factor
1 + share * median(cost of an update / cost of a call), and the bootstrap draws these blocks too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from sparsefleet.errors import UserError
from sparsefleet.measure.contention import drop_reasons
from sparsefleet.measure.draws import Charge, bootstrap, quantile
from sparsefleet.measure.samples import PLAIN, RIVAL, SIDES, UPDATE, Samples

_OF_THE_SPARSE_SIDE = ("vs_dense", "vs_rival")
"""Ratios that work at some calls of the sparse side lowers."""


@dataclass(frozen=True)
class Ratio:
    """How much faster one side is than another.

    Attributes:
        value: None if a process kept no round.
        ci95: its percentile bootstrap interval; None where there are too few kept rounds for one.
        drift: last third of the kept rounds over the first third, as a ratio; of the process that drifted most.
        between: largest over smallest value of the processes, minus 1; None for one process.
    """

    value: float | None
    ci95: tuple[float, float] | None
    drift: float
    between: float | None

    @property
    def half_width(self) -> float | None:
        """Half the interval's width relative to the value."""
        return None if self.value is None or self.ci95 is None else (self.ci95[1] - self.ci95[0]) / 2 / self.value


@dataclass(frozen=True)
class Estimate:
    """What the samples say; seconds are per call.

    Attributes:
        vs_dense: dense over sparse.
        vs_rival: rival over sparse; None without a rival.
        rival_vs_dense: dense over rival; None without a rival.
        aa_ratio: the first dense copy over the second: 1 on a quiet machine; of the process where it is furthest from 1, since opposite errors
            of two processes must not cancel. From all rounds if none was kept.
        sparse_s: with the share of what happens at some calls only.
        least_kept: kept rounds of the process that kept the fewest, and their share.
        cpus_used: CPUs that the process used during the blocks of a side, median; empty where the clock cannot tell.
        dropped: number of dropped rounds by reason.
        update_calls: plain calls that an update of the topology takes as long as; None where there is none.
        update_share: share of the calls that have one.
        least_updates: timed updates that were not disturbed, and all timed ones, of the process that kept the fewest; None where there are none.
    """

    vs_dense: Ratio
    vs_rival: Ratio | None
    rival_vs_dense: Ratio | None
    aa_ratio: float
    dense_s: dict[str, float]
    sparse_s: dict[str, float]
    rival_s: dict[str, float]
    rounds: int
    kept: int
    least_kept: tuple[int, float]
    processes: int
    cpus_used: dict[str, float]
    dropped: dict[str, int] = field(default_factory=dict)
    update_calls: float | None = None
    update_share: float = 0.0
    least_updates: tuple[int, int] | None = None

    @property
    def speedup(self) -> float | None:
        """Dense over sparse."""
        return self.vs_dense.value

    @property
    def ci95(self) -> tuple[float, float] | None:
        """Of ``speedup``."""
        return self.vs_dense.ci95

    @property
    def drift(self) -> float:
        """Of ``speedup``."""
        return self.vs_dense.drift

    @property
    def half_width(self) -> float | None:
        """Of ``speedup``."""
        return self.vs_dense.half_width

    @property
    def method_share(self) -> float:
        """Share of ``sparse_s`` that is work at some calls only, spread over all."""
        added = 0.0 if self.update_calls is None else self.update_share * (self.update_calls - 1)
        return added / (1 + added)


@dataclass(frozen=True)
class _Logs:
    """One process's usable rounds, and whether they are kept ones.

    Attributes:
        ratios: log-ratios by the name they have in an ``Estimate``.
        charge: what updates of the topology add to a call of the sparse side.
        updates: timed ones that were not disturbed, and all timed ones.
    """

    kept: bool
    ratios: dict[str, list[float]]
    control: list[float]
    seconds: dict[str, list[float]]
    reasons: list[str]
    charge: Charge | None
    updates: tuple[int, int] | None


def recompute(*processes: Samples) -> Estimate:
    """The estimate from raw samples alone: the same digits wherever it is computed."""
    logs = [_logs(samples) for samples in processes]
    counts = [sum(not reason for reason in one.reasons) for one in logs]
    seconds = {side: [v for one in logs for v in one.seconds[side]] for side in processes[0].sides}
    summaries = {side: _summary(values) for side, values in seconds.items()}
    ratios = {name: _ratio(name, logs, processes[0].key) for name in logs[0].ratios}
    share = processes[0].update_share
    return Estimate(
        vs_dense=ratios["vs_dense"],
        vs_rival=ratios.get("vs_rival"),
        rival_vs_dense=ratios.get("rival_vs_dense"),
        aa_ratio=math.exp(max((median(one.control) for one in logs), key=abs)),
        dense_s=summaries["dense"],
        sparse_s=summaries["sparse"],
        rival_s=summaries.get(RIVAL, {}),
        rounds=sum(samples.rounds for samples in processes),
        kept=sum(counts),
        least_kept=min((kept, kept / samples.rounds) for kept, samples in zip(counts, processes, strict=True)),
        processes=len(processes),
        cpus_used=_cpus_used(processes),
        dropped=dict(sorted(Counter(reason for one in logs for reason in one.reasons if reason).items())),
        update_calls=1 + math.expm1(fmean(_slower(one) for one in logs)) / share if share else None,
        update_share=share,
        least_updates=min((one.updates for one in logs if one.updates), default=None),
    )


def _logs(samples: Samples) -> _Logs:
    reasons, usable, kept = _usable(samples)
    seconds = {side: [samples.per_call(side)[i] for i in usable] for side in samples.sides}
    d, s, e = (seconds[side] for side in SIDES)
    ratios = {"vs_dense": [math.log(math.sqrt(a * c) / b) for a, b, c in zip(d, s, e, strict=True)]}
    if RIVAL in seconds:
        ratios["vs_rival"] = [math.log(a / b) for a, b in zip(seconds[RIVAL], s, strict=True)]
        ratios["rival_vs_dense"] = [math.log(math.sqrt(a * c) / b) for a, b, c in zip(d, seconds[RIVAL], e, strict=True)]
    charge, updates = _charge(samples)
    found = _Logs(kept, ratios, [math.log(a / c) for a, c in zip(d, e, strict=True)], seconds, reasons, charge, updates)
    seconds["sparse"] = [value * math.exp(_slower(found)) for value in s]
    return found


def _usable(samples: Samples) -> tuple[list[str], list[int], bool]:
    """Why each round was dropped, the rounds to compute with, and whether these are kept ones; if none was kept, all that took time."""
    reasons = drop_reasons(samples)
    kept = [i for i, reason in enumerate(reasons) if not reason]
    usable = kept or [i for i, reason in enumerate(reasons) if reason != "no_time"]
    if not usable:
        raise UserError("no block took any time", cause="the clock is too coarse for what was timed", fix="time more work per call")
    return reasons, usable, bool(kept)


def _charge(samples: Samples) -> tuple[Charge | None, tuple[int, int] | None]:
    """What updates of the topology add, and how many of the timed ones were not disturbed.

    A block of ``update`` holds pairs of calls: one with the update, and the next one, which pays for what the update left behind.
    """
    timed = samples.updates
    if timed is None:
        return None, None
    reasons, usable, _ = _usable(timed)
    plain, update = timed.per_call(PLAIN), timed.per_call(UPDATE)
    return Charge(samples.update_share, [update[i] / plain[i] - 2 for i in usable]), (reasons.count(""), timed.rounds)


def _slower(logs: _Logs) -> float:
    """Log of the factor by which updates of the topology lengthen a call of the sparse side."""
    return 0.0 if logs.charge is None else logs.charge.log(median(logs.charge.extra))


def _ratio(name: str, logs: Sequence[_Logs], key: str) -> Ratio:
    groups = [one.ratios[name] for one in logs]
    charged = name in _OF_THE_SPARSE_SIDE
    points = [median(values) - (_slower(one) if charged else 0.0) for values, one in zip(groups, logs, strict=True)]
    kept = all(one.kept for one in logs)
    return Ratio(
        value=math.exp(fmean(points)) if kept else None,
        ci95=bootstrap(groups, f"{key}|{name}", [one.charge for one in logs] if charged else []) if kept else None,
        drift=math.exp(max((_drift(values) for values in groups), key=abs)),
        between=math.expm1(max(points) - min(points)) if len(points) > 1 else None,
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


def _summary(values: Sequence[float]) -> dict[str, float]:
    ordered, middle = sorted(values), median(values)
    return {
        "median": middle,
        "p10": quantile(ordered, 0.1),
        "p90": quantile(ordered, 0.9),
        "mad": median(abs(value - middle) for value in values),
    }
