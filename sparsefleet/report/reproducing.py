"""Ours beside theirs: PASS, FAIL, or why a row says nothing. A run that was cut short or changed is never called a reproduction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sparsefleet.report.groups import Group, Values, group, leaf, leaves, without_seed
from sparsefleet.report.intervals import Interval, interval, mean
from sparsefleet.report.labels import short
from sparsefleet.report.reproduction import Figure, Order, Reproduction, Selector

if TYPE_CHECKING:
    from sparsefleet.ledger.rows import TrialRow
    from sparsefleet.trial.spec import TrialSpec

Status = Literal["PASS", "FAIL", "UNDER-TRAINED", "ALTERED", "NOT RUN"]
STATUSES: tuple[Status, ...] = ("PASS", "FAIL", "UNDER-TRAINED", "ALTERED", "NOT RUN")
_FAMILIES = ("dataset", "model", "layer", "connectivity", "activation")
_FACTS = ("seeds", "steps", "n_test")
_SCALE = {"accuracy": (0.0, 1.0), "accuracy %": (0.0, 100.0), "error %": (100.0, -100.0)}


@dataclass
class Judged:
    """One row of the result; ``ours`` and ``interval`` are in the published unit, of an order they are the mean difference."""

    label: str
    status: Status
    reasons: list[str]
    unit: str
    n: int = 0
    ours: float | None = None
    interval: Interval | None = None
    by_seed: list[float] = field(default_factory=list)
    published: float | None = None
    se: float | None = None
    tolerance: float | None = None
    gap: float | None = None
    because: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def fits(selector: Selector, arm: str, spec: Mapping[str, Any]) -> bool:
    """Whether a trial, by its spec as JSON, is of the selected configuration; ``arm`` is ``sparse`` unless the selector names another."""
    from sparsefleet.trial.spec import Method

    known = {"arm": arm, "method": Method.model_validate(spec["method"]).label, **{name: spec[name]["name"] for name in _FAMILIES}}
    asked = {"arm": "sparse", **selector}
    density = asked.pop("density", None)
    if density is not None and not math.isclose(float(spec.get("narrow_to_density") or spec["density"]), float(density), rel_tol=1e-9):
        return False
    return all((known[key] if key in known else leaf(spec, key)) == wanted for key, wanted in asked.items())


def label_of(selector: Selector) -> str:
    """``set 0.1``; what is neither method nor density stands in brackets."""
    rest = {k: v for k, v in selector.items() if k not in ("method", "density", "arm")}
    name = selector.get("method") or selector.get("arm", "sparse")
    arm = selector.get("arm")
    told = [f"{key.rpartition('.')[2]} {short(value)}" for key, value in rest.items()]
    told += [arm] if arm and arm not in (name, "sparse", "random-static") else []
    return " ".join(
        [str(name), *([f"{selector['density']:g}"] if "density" in selector else []), *([f"({', '.join(told)})"] if told else [])]
    )


def judge(reproduction: Reproduction, recipe: Iterable[tuple[str, TrialSpec]], trials: Sequence[TrialRow]) -> list[Judged]:
    """Every row of the reproduction.

    Args:
        recipe: arm and spec of every trial of its grid, nothing overridden.
        trials: of the sweep that is looked at.
    """
    published: dict[tuple[str, str], dict[str, Any]] = {}
    for arm, spec in recipe:
        published.setdefault((arm, spec.model_copy(update={"seed": 0}).spec_id), without_seed(spec.to_json()))
    court = _Court(group(trials), Values(trials), [(arm, spec) for (arm, _), spec in published.items()])
    return [court.figure(row) if isinstance(row, Figure) else court.order(row) for row in reproduction.rows]


@dataclass
class _Court:
    groups: list[Group]
    values: Values
    recipe: list[tuple[str, dict[str, Any]]]

    def figure(self, row: Figure) -> Judged:
        one, status, reasons = self._admitted(row.select, row.budget)
        found = Judged(
            label_of(row.select),
            "NOT RUN",
            reasons,
            row.unit,
            published=row.published,
            se=row.se,
            tolerance=row.tolerance,
            because=row.because,
        )
        if one is None:
            return found
        offset, factor = _SCALE[row.unit]
        found.by_seed = [offset + factor * v for v in self._by_seed(one, "accuracy").values()]
        found.n, found.ours, found.interval = len(found.by_seed), mean(found.by_seed), interval(found.by_seed)
        if found.ours is None:
            return found
        found.gap = found.ours - row.published
        within = abs(found.gap) <= row.tolerance * (1 + 1e-9)
        found.status = status or ("PASS" if within else "FAIL")
        if found.status == "FAIL":
            side = "above" if found.gap > 0 else "below"
            reaches = (
                found.interval and found.interval[0] <= row.published + row.tolerance and found.interval[1] >= row.published - row.tolerance
            )
            reach = "; its interval reaches into the tolerance, so more seeds may decide otherwise" if reaches else ""
            reasons.append(f"{side} by {abs(found.gap):.3g}, the tolerance is {row.tolerance:g}{reach}")
        return found

    def order(self, row: Order) -> Judged:
        sign = "<" if row.strict else "≤"
        label = f"{label_of(row.lower)}{f' {row.margin:+g}' if row.margin else ''} {sign} {label_of(row.higher)}"
        label += f", by more than {label_of(row.than.lower)} {sign} {label_of(row.than.higher)}" if row.than else ""
        found = Judged(label if row.metric == "accuracy" else f"{row.metric}: {label}", "NOT RUN", [], row.metric, because=row.because)
        statuses: list[Status] = []
        parts: list[dict[int, float]] = []
        absent: list[str] = []
        for selector in row.selectors:
            one, status, reasons = self._admitted(selector, row.budget)
            found.reasons += [f"{label_of(selector)}: {reason}" for reason in reasons]
            absent += reasons if status == "NOT RUN" else []
            statuses += [status] if status else []
            parts.append(self._by_seed(one, row.metric) if one else {})
        if absent:
            found.reasons = list(dict.fromkeys(absent))
        seeds = sorted(set(parts[0]).intersection(*parts[1:]))
        signs = (1, -1, -1, 1)
        found.by_seed = [math.fsum(s * part[seed] for s, part in zip(signs, parts, strict=False)) for seed in seeds]
        found.n, found.ours, found.interval = len(seeds), mean(found.by_seed), interval(found.by_seed)
        if found.ours is None:
            found.reasons = found.reasons or [f"no seed has {row.metric} on both sides"]
            return found
        wanted = row.budget.get("seeds", 1)
        if not statuses and found.n < wanted:
            statuses, found.reasons = ["UNDER-TRAINED"], [f"{found.n} of {wanted} seeds have {row.metric} on both sides"]
        if statuses:
            found.status = min(statuses, key=STATUSES.index)
            return found
        low, high = found.interval or (found.ours, found.ours)
        held = low > row.margin if row.strict else high >= row.margin
        found.status = "PASS" if held else "FAIL"
        if not held:
            found.reasons.append("refuted" if high <= row.margin else f"not shown: the interval of the difference holds {row.margin:g}")
        elif not row.strict and low < row.margin:
            found.reasons.append("not refuted; no difference is shown either")
        return found

    def _by_seed(self, one: Group, metric: str) -> dict[int, float]:
        if metric == "accuracy":
            found = {t.spec.get("seed", 0): self.values.of(t) for t in one.trials}
        else:
            curves = {t.spec.get("seed", 0): (t.record or {}).get("curves", {}).get(metric) for t in one.trials if t.state == "SUCCEEDED"}
            found = {seed: curve["values"][-1] if curve and curve["values"] else None for seed, curve in curves.items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def _admitted(self, selector: Selector, budget: Mapping[str, Any]) -> tuple[Group | None, Status | None, list[str]]:
        """The configuration that is meant, and why it cannot stand for the published one, if it cannot."""
        fitting = [g for g in self.groups if fits(selector, g.arm, g.spec)]
        if not fitting:
            return None, "NOT RUN", ["no such trial in this sweep"]
        recipes = [spec for arm, spec in self.recipe if fits(selector, arm, spec)]
        compared = [(g, self._short_of(g, budget), spec) for g in fitting for spec in recipes or [{}]]
        one, short_of, recipe = min(compared, key=lambda three: len(three[1]) + len(_others(three[0].spec, three[2], budget)))
        if not self._n(one):
            states = ", ".join(sorted({f"{t.state}{f': {t.reason}' if t.reason else ''}" for t in one.trials}))
            return one, "NOT RUN", [states.lower() if states in ("PENDING", "CANCELLED") else states]
        other = _others(one.spec, recipe, budget)
        if short_of:
            return one, "UNDER-TRAINED", [*short_of, *other]
        if not other and leaf(one.spec, "start.row") != leaf(recipe, "start.row"):
            other = ["the trial that it starts from is not the recipe's"]
        return one, "ALTERED" if other else None, other

    def _n(self, one: Group) -> int:
        return len(self._by_seed(one, "accuracy"))

    def _short_of(self, one: Group, budget: Mapping[str, Any]) -> list[str]:
        return [text for key, wanted in budget.items() for text in _misses(key, wanted, one, self._n(one))]


def _misses(key: str, wanted: Any, one: Group, n: int) -> Iterable[str]:
    """What of the budget is not met."""
    if key == "seeds":
        if n < wanted:
            yield f"{n} seed{'s' if n > 1 else ''}, wanted {wanted}"
        return
    if key in _FACTS:
        found = sorted({(r.get("accuracy") or {}).get(key) for r in one.records} - {wanted}, key=str)
    else:
        here = one.spec[key]["name"] if key in _FAMILIES else leaf(one.spec, key)
        found = [] if _same(here, wanted) else [here]
    yield from (f"{key} is {short(value)}, published {short(wanted)}" for value in found)


def _others(spec: Mapping[str, Any], recipe: Mapping[str, Any], budget: Mapping[str, Any]) -> list[str]:
    """Where the trial differs from the recipe beyond its budget; of a start, all but which trial it is. Of another plugin than the
    published one only that is told, and its parameters are not."""
    ours, theirs = dict(leaves(spec)), dict(leaves(recipe))
    told = []
    for path in dict.fromkeys([*ours, *theirs]):
        name = f"{path.split('.')[0]}.name"
        named = name.removesuffix(".name") in budget and (path == name or ours.get(name) != theirs.get(name))
        if _same(ours.get(path), theirs.get(path)) or path in budget or named or path == "start.row":
            continue
        told.append(f"{path} is {short(ours.get(path))}, the recipe has {short(theirs.get(path))}")
    return told


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
