"""What submitting a grid would do, without doing it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sparsefleet.errors import UserError
from sparsefleet.grid.arms import Judge
from sparsefleet.grid.counting import TooTangled, count_points, even_candidates, has_selections
from sparsefleet.grid.expand import Point, expand
from sparsefleet.grid.fit import Facts
from sparsefleet.grid.history import Estimate, FinishedTrials, History, history, slots_of
from sparsefleet.grid.load import name_of
from sparsefleet.grid.model import Grid
from sparsefleet.grid.need import Need, size_text
from sparsefleet.grid.totals import Counted, Totals, expanded

if TYPE_CHECKING:
    from sparsefleet.registry import Catalog

MAX_TRIALS = 10_000
"""What the grid names; the twins and control arms that the product adds are not counted against it."""
_MOST_KINDS = 6
EXPANDED_UP_TO = 1_000
"""Grids of more points are counted without expansion."""


@dataclass(frozen=True)
class Plan:
    """The counts of a grid.

    Attributes:
        formula: the factors of the product, as (number, name).
        points: what the grid names, seeds included; the product and ``include``.
        totals: exact counts of trials, twins, control arms and skips; None where they cannot be had without expanding the grid.
        unknown: why ``totals`` is None.
        tuned: some points have several candidates (``select``).
        history: what the ledger knows of the trials; None for more points than are submitted without being asked for.
    """

    name: str
    sweep: str
    path: str
    formula: tuple[tuple[int, str], ...]
    points: int
    beside: int
    totals: Totals | None
    unknown: str = ""
    tuned: bool = False
    history: History | None = None

    @property
    def cached(self) -> int | None:
        """Trials that have ended under the same key; None where it is not known."""
        return self.history.cached if self.history else None

    @property
    def estimate(self) -> Estimate | None:
        """How long the rest takes; None where no trial of the grid has finished."""
        return self.history.estimate if self.history else None

    @property
    def trials(self) -> int:
        """Everything there is to run or to find cached; the named points where the rest is unknown."""
        return self.points if self.totals is None else self.totals.trials

    @property
    def to_run(self) -> int:
        """Trials that are not cached."""
        return self.trials - (self.cached or 0)

    def lines(self) -> list[str]:
        """The plan as text."""
        product = " × ".join(f"{n} {name}" for n, name in self.formula)
        beside = f"{' + ' if product else ''}{self.beside:,} beside" if self.beside else ""
        uneven = ", with candidates" if self.tuned and not any(name == "candidates" for _, name in self.formula) else ""
        text = f"grid {self.name}: {product}{beside}{uneven} = {_n(self.points, 'trial')}"
        totals = self.totals
        if totals is None:
            return [text, f"  note   twins, control arms and skips are not counted: {self.unknown}", self._next()]
        arms = totals.controls.total()
        text += f", + {_n(totals.twins, 'dense twin')}" if totals.twins else ""
        text += f", + {_n(arms, 'control arm')} ({', '.join(f'{n:,} {arm}' for arm, n in sorted(totals.controls.items()))})" if arms else ""
        rows = [("skip", n, reason) for reason, n in totals.skipped.most_common()]
        if totals.repeated:
            rows.append(("same", totals.repeated, "the same trial as another one; run once"))
        rows += self._known_rows()
        width = max(len(f"{n:,}") for _, n, _ in rows)
        lines = [text, *(f"  {what:<6} {n:>{width},}  {why}" for what, n, why in rows)]
        lines += [f"  note   no small-dense for {n:,}: {why}" for why, n in totals.no_rival.most_common()]
        lines += [f"  {text}" for text in memory_lines(totals)]
        lines += [f"  note   dense infeasible for {n:,}: {why}" for why, n in totals.infeasible.most_common()]
        lines += [f"  note   the dense twin differs: {why}" for why, _ in totals.budgets.most_common(3)]
        more = len(totals.budgets) - 3
        return [*lines, *([f"  note   … and in {more} more ways"] if more > 0 else []), self._next()]

    def _known_rows(self) -> list[tuple[str, int, str]]:
        """What is there and what is left, with the time that it takes."""
        known, rows = self.history, []
        if known and known.cached is not None:
            failed = f"; {known.failed:,} of them failed, resume --failed tries those again" if known.failed else ""
            other = f"; {known.other_code:,} more finished under other code, data or device" if known.other_code else ""
            rows.append(("cached", known.cached, f"already finished under the same id{failed}{other}"))
        nothing = "nothing is left" if not self.to_run else "no finished trial of this grid to estimate the time from"
        rows.append(("run", self.to_run, str(self.estimate) if self.estimate else nothing))
        if known and known.measures:
            each = known.measure_s
            took = (
                f"about {duration_text(each * known.measures)}, one at a time" if each else "no measurement here to estimate the time from"
            )
            again = "those measured before are not measured again, those not trustworthy once more"
            rows.append(("timing", known.measures, f"configurations, at most: {took}; {again}"))
        return rows

    def _next(self) -> str:
        over = f" --max-trials {self.points}" if self.points > MAX_TRIALS else ""
        return f"next: sparsefleet submit grid {self.path}{over}"

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        totals = self.totals
        return {
            "schema": 1,
            "grid": self.name,
            "sweep": self.sweep,
            "formula": [{"n": n, "name": name} for n, name in self.formula],
            "points": self.points,
            "beside": self.beside,
            "trials": self.trials,
            "exact": totals is not None,
            "twins": totals.twins if totals else None,
            "control_arms": dict(totals.controls) if totals else None,
            "repeated": totals.repeated if totals else None,
            "skipped": [{"n": n, "reason": reason} for reason, n in totals.skipped.most_common()] if totals else None,
            "dense_infeasible": [{"n": n, "reason": reason} for reason, n in totals.infeasible.most_common()] if totals else None,
            "no_small_dense": [{"n": n, "reason": reason} for reason, n in totals.no_rival.most_common()] if totals else None,
            "twin_differs": sorted(totals.budgets) if totals else None,
            "memory": memory_json(totals) if totals else None,
            "cached": self.cached,
            "cached_failed": self.history.failed if self.history else None,
            "other_code": self.history.other_code if self.history else None,
            "run": self.to_run,
            "estimate_s": self.estimate.seconds if self.estimate else None,
            "estimate_spread": self.estimate.spread if self.estimate else None,
            "measurements": self.history.measures if self.history else None,
            "measurements_s": self.history.measures * self.history.measure_s if self.history and self.history.measure_s else None,
        }


def plan(
    grid: Grid,
    catalog: Catalog,
    ledger: FinishedTrials | None = None,
    *,
    key_of: Callable[[Point], str] | None = None,
    memory_bytes: int | None = None,
) -> Plan:
    """The plan of a grid.

    Args:
        ledger: where finished trials are looked up; above 10,000 points it is not asked.
        key_of: the key of a point in the ledger; default: its spec_id, which does not know whether code or data changed since.
        memory_bytes: what dense weights must fit into; default: this machine's memory.
    """
    judge = Judge(grid, Facts(catalog, memory_bytes))
    points = count_points(grid)
    totals, unknown = None, ""
    try:
        totals = expanded(grid, judge) if points <= EXPANDED_UP_TO else Counted(grid, judge).count()
    except TooTangled as error:
        unknown = error.what
    known = None
    if totals is not None and points <= (MAX_TRIALS if ledger is not None else EXPANDED_UP_TO):
        known = history(grid, expand(grid, catalog, memory_bytes), ledger, key_of or (lambda point: point.spec.spec_id))
    return Plan(
        name=grid.name,
        sweep=grid.sweep,
        path=name_of(grid.path),
        formula=formula_of(grid),
        points=points,
        beside=points - count_points(replace(grid, include=())) if grid.has_product else points,
        totals=totals,
        unknown=unknown,
        tuned=has_selections(grid),
        history=known,
    )


def memory_lines(totals: Totals) -> list[str]:
    """What the largest trial of each kind takes, the largest first."""
    if totals.memory_bound is not None:
        return [f"memory every trial takes less than {size_text(totals.memory_bound)}, data and torch aside"]
    alike: dict[tuple[str, int, Need], list[str]] = {}
    for (arm, layer, widest), takes in totals.memory.items():
        alike.setdefault((layer, widest, takes), []).append(arm)
    largest = sorted(alike.items(), key=lambda item: -item[0][2].total)
    lines = [
        f"memory {' and '.join(arms)}, layer={layer}, {'narrowed to ' if arms == ['small-dense'] else ''}width {wide:,}: {takes}, data and torch aside"
        for (layer, wide, takes), arms in largest[:_MOST_KINDS]
    ]
    more = len(largest) - len(lines)
    return [*lines, *([f"memory … and {_n(more, 'kind')} of trials that take less"] if more > 0 else [])]


def memory_json(totals: Totals) -> list[dict[str, Any]]:
    """The same as JSON values; bytes by what they hold."""
    return [
        {"arm": arm, "layer": layer, "widest": widest, "total": round(takes.total), **{name: round(n) for name, n in takes.parts.items()}}
        for (arm, layer, widest), takes in totals.memory.items()
    ]


def formula_of(grid: Grid) -> tuple[tuple[int, str], ...]:
    """The factors of the product as written: (number of values, axis); candidates are a factor where every point has as many."""
    if not grid.has_product:
        return ()
    several = even_candidates(grid)
    return (
        *((axis.n_values, _plural(axis.name, axis.n_values)) for axis in grid.axes),
        *(((several, "candidates"),) if several > 1 else ()),
        (len(grid.seeds), _plural("seed", len(grid.seeds))),
    )


def refuse_too_many(grid: Grid, max_trials: int | None = None, n_trials: int | None = None) -> None:
    """Ends a submission of more trials than were asked for.

    Args:
        max_trials: what the user allowed; default 10,000.
        n_trials: the exact number with twins and control arms, if it is known; default: the points.

    Raises:
        UserError: there are more.
    """
    n = count_points(grid) if n_trials is None else n_trials
    allowed = MAX_TRIALS if max_trials is None else max_trials
    if n <= allowed:
        return
    product = " × ".join(f"{k}" for k, _ in formula_of(grid)) if n_trials is None else ""
    slots = slots_of(grid)
    raise UserError(
        f"{n:,} trials{' = ' if product else ''}{product}; at one second each {duration_text(n / slots)} on {slots} slots",
        cause=f"more than {allowed:,} trials are not started by accident",
        fix=f"use --max-trials {n}, or fewer values",
    )


def duration_text(seconds: float) -> str:
    """``5 h 40 min``."""
    for unit, size, smaller, small in (
        ("years", 31_557_600, "days", 86_400),
        ("days", 86_400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if seconds >= size:
            rest = int(seconds % size // small)
            n = int(seconds // size)
            return f"{n:,} {unit.removesuffix('s') if n == 1 and unit != 's' else unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{seconds:.0f} s"


def _n(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _plural(name: str, n: int) -> str:
    known = {"seed": "seeds", "density": "densities", "layer": "layers", "method": "methods", "model": "models", "dataset": "datasets"}
    return known.get(name, name) if n != 1 else name
