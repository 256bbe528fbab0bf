"""From a grid to its trials, one after the other and never all at once.

Every distinct trial comes out once, its twin before it: a twin or control arm that several points share, and a point that is given twice, are the same
trial. The order is that of the file, the last axis varying fastest and the seeds faster still.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

from sparsefleet.grid.arms import Judge, Verdict, spec_of
from sparsefleet.grid.fit import Facts
from sparsefleet.grid.model import Choice, Grid
from sparsefleet.grid.settings import State, Unplaced, assign
from sparsefleet.trial.spec import TrialSpec

if TYPE_CHECKING:
    from sparsefleet.registry import Catalog


@dataclass(frozen=True)
class Point:
    """A trial of a sweep and its place in it.

    Attributes:
        arm: ``dense``, ``sparse``, ``random-static`` or ``small-dense``.
        twin: the dense twin; None for a dense trial, and where the twin cannot be trained.
        dense_infeasible: why there is no twin, e.g. ``dense weight needs 3.6 TiB, this machine has 24 GiB``.
        start: the trial whose trained weights this one starts from.
        rival: its small-dense trial, if the grid asks for that arm.
        added: the product added it (a twin or a control arm); the grid does not name it.
        skip: always None; what is skipped comes from ``walk`` as ``Skip``.
    """

    spec: TrialSpec
    arm: str
    twin: TrialSpec | None = None
    start: TrialSpec | None = None
    resources: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    skip: str | None = None
    rival: TrialSpec | None = None
    dense_infeasible: str | None = None
    added: bool = False


@dataclass(frozen=True)
class Skip:
    """Points that cannot run, and why."""

    reason: str
    n: int
    mistake: bool = False


def compose(base: State, choices: Iterable[Choice]) -> State:
    """The state of one choice per axis: whole things before the places inside them, then the overrides.

    Raises:
        Unplaced: a dotted name leads into something that does not stand there.
    """
    picked = tuple(choices)
    for part in ("sets", "overrides"):
        for assignment in sorted((a for choice in picked for a in getattr(choice, part)), key=lambda a: len(a.path)):
            base = assign(base, assignment)
    return base


def stands(grid: Grid, state: State, choices: Iterable[Choice]) -> bool:
    """Whether the point exists: every ``when`` holds and no ``exclude`` does."""
    return all(c.holds(state) for choice in choices for c in choice.when) and not any(c.holds(state) for c in grid.exclude)


def points_of(grid: Grid) -> Iterator[tuple[State | str, Sequence[int]]]:
    """Every point without its seed: its state, or why it cannot be composed; then the seeds it runs with."""
    if grid.has_product:
        for choices in product(*(axis.choices for axis in grid.axes)):
            try:
                state = compose(grid.base, choices)
            except Unplaced as error:
                if _may_stand(grid, choices):
                    yield str(error), grid.seeds
                continue
            if stands(grid, state, choices):
                yield state, grid.seeds
    for entry in grid.include:
        try:
            yield compose(grid.base, [Choice(entry.sets)]), entry.seeds
        except Unplaced as error:
            yield str(error), entry.seeds


def _may_stand(grid: Grid, choices: Sequence[Choice]) -> bool:
    """As ``stands``, for choices that do not compose: judged on what can be set."""
    state = lenient(grid.base, choices)
    return stands(grid, state, choices)


def lenient(base: State, choices: Sequence[Choice]) -> State:
    """``compose`` without the assignments that have no place."""
    for part in ("sets", "overrides"):
        for assignment in sorted((a for choice in choices for a in getattr(choice, part)), key=lambda a: len(a.path)):
            try:
                base = assign(base, assignment)
            except Unplaced:
                continue
    return base


def walk(grid: Grid, catalog: Catalog, memory_bytes: int | None = None) -> Iterator[Point | Skip]:
    """Every trial of the grid once, and every point that cannot run."""
    judge = Judge(grid, Facts(catalog, memory_bytes))
    seen: set[str] = set()
    for state, seeds in points_of(grid):
        if isinstance(state, str):
            yield Skip(state, len(seeds), mistake=True)
            continue
        verdict = judge.judge(state)
        if verdict.kind == "skip":
            yield Skip(verdict.reason, len(seeds), verdict.mistake)
            continue
        for point in trials_of(judge, verdict, seeds):
            spec_id = point.spec.spec_id
            if spec_id not in seen:
                seen.add(spec_id)
                yield point


def expand(grid: Grid, catalog: Catalog, memory_bytes: int | None = None) -> Iterator[Point]:
    """Every trial of the grid that can run, once; lazily.

    Args:
        memory_bytes: what dense weights must fit into; default: this machine's memory.
    """
    return (item for item in walk(grid, catalog, memory_bytes) if isinstance(item, Point))


def trials_of(judge: Judge, verdict: Verdict, seeds: Sequence[int]) -> Iterator[Point]:
    """The trials of one judged state for every seed: the twin first, the control arms last; not told from those of other states."""
    state = verdict.state
    common: dict[str, Any] = {"resources": dict(state["resources"]), "limits": dict(state["limits"])}
    spec = spec_of(state)
    if verdict.kind == "dense":
        for seed in seeds:
            yield Point(_seeded(spec, seed), "dense", **common)
        return
    twin = None if verdict.infeasible else spec_of(judge.twin(state))
    acts = verdict.kind in ("sparse", "static")
    arms = judge.grid.control_arms if acts else ()
    static = spec_of(judge.random_static(state)) if "random-static" in arms else None
    small = spec_of(judge.small_dense(state)) if "small-dense" in arms else None
    starts = acts and state["method"].get("start") == "twin"
    for seed in seeds:
        twin_here, rival = _maybe(twin, seed), _maybe(small, seed)
        common["dense_infeasible"] = verdict.infeasible
        if twin_here is not None:
            yield Point(twin_here, "dense", added=True, resources=common["resources"], limits=common["limits"])
        start = twin_here if starts else None
        own = _seeded(spec, seed, start.spec_id if start else None)
        yield Point(own, "random-static" if verdict.kind == "static" else "sparse", twin_here, start, rival=rival, **common)
        if static is not None:
            yield Point(_seeded(static, seed), "random-static", twin_here, rival=rival, added=True, **common)
        if rival is not None:
            yield Point(rival, "small-dense", twin_here, added=True, **common)


def _seeded(spec: TrialSpec, seed: int, start_from: str | None = None) -> TrialSpec:
    return spec.model_copy(update={"seed": seed, "start_from": start_from})


def _maybe(spec: TrialSpec | None, seed: int) -> TrialSpec | None:
    return None if spec is None else _seeded(spec, seed)


def count(grid: Grid) -> int:
    """How many points the grid has, seeds included, before skips: exact, by multiplication."""
    from sparsefleet.grid.counting import count_points

    return count_points(grid)
