"""What a ledger knows of a grid's trials: which are finished, which ran under other code, and how long the rest takes."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from sparsefleet.durations import Durations, kind_of
from sparsefleet.grid.expand import Point
from sparsefleet.grid.model import Grid
from sparsefleet.trial.spec import TrialSpec

ENDED = ("SUCCEEDED", "DIVERGED")
"""Ends whose time tells how long a trial takes."""
_BATCH_SIZES: dict[str, tuple[Any, ...]] = {"screen": ("train",), "publish": ("train", 1, 32, 256)}


class FinishedTrial(Protocol):
    """A trial that has ended: its identity, how, and the seconds of the attempt that did it."""

    @property
    def key(self) -> str:
        """The trial key."""

    @property
    def spec_id(self) -> str:
        """Of its spec."""

    @property
    def state(self) -> str:
        """Its end."""

    @property
    def seconds(self) -> float | None:
        """None where they are not known."""


class FinishedTrials(Protocol):
    """What a plan needs of the ledger."""

    def finished(self, spec_ids: Iterable[str], /) -> Iterable[FinishedTrial]:
        """The trials of these specs that have ended, under whatever code they ran."""

    def measure_seconds(self) -> float | None:
        """What measuring one configuration took, the median; None where nothing has been measured."""


@dataclass(frozen=True)
class Estimate:
    """How long the rest takes, from trials of this grid that have finished."""

    seconds: float
    spread: float | None
    """Standard deviation over mean of trials that do the same work; None where only one has finished."""
    n_finished: int
    slots: int

    def __str__(self) -> str:
        from sparsefleet.grid.plan import duration_text

        noun = "trial" if self.n_finished == 1 else "trials"
        spread = f" (±{self.spread:.0%})" if self.spread is not None else ""
        slots = f"{self.slots} slot{'s' if self.slots > 1 else ''}"
        return f"about {duration_text(self.seconds)} on {slots}, from {self.n_finished} finished {noun}{spread}"


@dataclass(frozen=True)
class History:
    """The points of a grid beside what has ended.

    Attributes:
        cached: trials that have ended under the same key, ``failed`` of them without a result; None without a ledger.
        other_code: trials that ended under the same spec_id, but other code, data or device.
        measures: configurations to time, about: what a trial's layers turn out to be decides.
    """

    cached: int | None
    failed: int
    other_code: int
    estimate: Estimate | None
    measures: int
    measure_s: float | None


def history(grid: Grid, points: Iterable[Point], ledger: FinishedTrials | None, key_of: Callable[[Point], str]) -> History:
    """What the ledger knows of the points; each is asked for once."""
    kinds: dict[str, tuple[str, ...]] = {}
    keys: dict[str, str] = {}
    configurations: Counter[str] = Counter()
    for point in points:
        spec_id = point.spec.spec_id
        if spec_id not in kinds:
            kinds[spec_id] = kind_of(point.spec.to_json(), point.arm)
            keys[spec_id] = key_of(point) if ledger is not None else ""
            configurations.update(_configurations(grid, point))
    found = list(ledger.finished(kinds)) if ledger is not None else []
    durations = Durations()
    same: dict[str, str] = {}
    for one in found:
        if one.seconds is not None and one.state in ENDED and one.spec_id in kinds:
            durations.add(kinds[one.spec_id], one.seconds)
        if keys.get(one.spec_id) == one.key:
            same[one.spec_id] = one.state
    left = durations.total(kind for spec_id, kind in kinds.items() if spec_id not in same)
    slots = slots_of(grid)
    return History(
        cached=len(same) if ledger is not None else None,
        failed=sum(state not in ENDED for state in same.values()),
        other_code=len({one.spec_id for one in found} - same.keys()),
        estimate=Estimate(left / slots, durations.spread, durations.n, slots) if left else None,
        measures=len(configurations),
        measure_s=ledger.measure_seconds() if ledger is not None and configurations else None,
    )


def slots_of(grid: Grid) -> int:
    """Trials at once on this machine, on the resources that the grid asks for."""
    cpus = os.cpu_count() or 1
    return max(1, min(grid.max_parallel or cpus, cpus // int(grid.base["resources"]["cpus"])))


def _configurations(grid: Grid, point: Point) -> list[str]:
    """What is timed of a trial, as text that other seeds share; nothing for dense twins and small-dense, which are timed beside others."""
    asked = grid.measure
    if asked.level == "none" or point.arm not in ("sparse", "random-static") or point.spec.layer.name == "masked":
        return []
    sizes = asked.batch_sizes or _BATCH_SIZES[asked.level]
    return [
        f"{op} {batch} {_alike(point.spec, op)}"
        for op in asked.ops
        for batch in dict.fromkeys(point.spec.train.batch_size if size == "train" else size for size in sizes)
    ]


def _alike(spec: TrialSpec, op: str) -> str:
    body = spec.to_json()
    left_out = ("seed", "start", "init", "validation", *(("optimizer", "train") if op == "forward" else ()))
    return json.dumps({name: value for name, value in body.items() if name not in left_out}, sort_keys=True)
