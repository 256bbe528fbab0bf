"""From a grid to its trials, one after the other and never all at once.

Every distinct trial comes out once, its twin before it: a twin or control arm that several points share, and a point that is given twice, are the same
trial. The order is that of the file, the last axis varying fastest and the seeds faster still.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

from sparsefleet.grid.arms import MASK_ARMS, Judge, Verdict, has_mask_arm, spec_of
from sparsefleet.grid.fit import Facts
from sparsefleet.grid.model import Choice, Grid
from sparsefleet.grid.selecting import Arm, Selection, candidates, picks_of
from sparsefleet.grid.settings import State, Unplaced, assign
from sparsefleet.trial.spec import Rewind, Start, TrialSpec

if TYPE_CHECKING:
    from sparsefleet.registry import Catalog


_ORDER = ("sets", "overrides", "picks")
_LEVEL = "small-dense stands beside the last level of a lottery"


@dataclass(frozen=True)
class Point:
    """A trial of a sweep and its place in it.

    Attributes:
        arm: ``dense``, ``sparse``, or a control arm: ``random-static``, ``small-dense``, ``shuffled-mask``, ``reinit-mask``.
        twin: the dense twin; None for a dense trial, and where the twin cannot be trained.
        dense_infeasible: why there is no twin, e.g. ``dense weight needs 3.6 TiB, this machine has 24 GiB``.
        start: the trial that this one starts from: it takes its weights, its connections, or prunes it once more.
        rival: its small-dense trial, if the grid asks for that arm.
        added: the product added it (a twin or a control arm); the grid does not name it.
        selection: its part in a selection, if it is a candidate; ``twin`` and ``rival`` are then candidates too.
        twin_selection: id of the selection whose winner is the twin; None where the twin is not tuned.
        rival_selection: the same for the rival.
        no_rival: why the grid's small-dense arm cannot stand beside it.
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
    selection: Selection | None = None
    twin_selection: str | None = None
    rival_selection: str | None = None
    no_rival: str | None = None


@dataclass(frozen=True)
class Skip:
    """Points that cannot run, and why."""

    reason: str
    n: int
    mistake: bool = False


def compose(base: State, choices: Iterable[Choice]) -> State:
    """The state of one choice per axis: whole things before the places inside them, then the overrides, then what is picked of selections.

    Raises:
        Unplaced: a dotted name leads into something that does not stand there.
    """
    picked = tuple(choices)
    for part in _ORDER:
        for assignment in sorted((a for choice in picked for a in getattr(choice, part)), key=lambda a: len(a.path)):
            base = assign(base, assignment)
    return base


def stands(grid: Grid, state: State, choices: Iterable[Choice]) -> bool:
    """Whether the point exists: every ``when`` holds and no ``exclude`` does."""
    return all(c.holds(state) for choice in choices for c in choice.when) and not any(c.holds(state) for c in grid.exclude)


def points_of(grid: Grid) -> Iterator[tuple[State | str, Sequence[int]]]:
    """Every point without its seed: its state, selections open, or for each candidate why it cannot be composed; then the seeds it runs with."""
    if grid.has_product:
        for choices in product(*(axis.choices for axis in grid.axes)):
            try:
                state = compose(grid.base, choices)
            except Unplaced as error:
                if _may_stand(grid, choices):
                    for _ in picks_of(lenient(grid.base, choices)):
                        yield str(error), grid.seeds
                continue
            if stands(grid, state, choices):
                yield state, grid.seeds
    for entry in grid.include:
        try:
            yield compose(grid.base, [Choice(entry.sets)]), entry.seeds
        except Unplaced as error:
            for _ in picks_of(lenient(grid.base, [Choice(entry.sets)])):
                yield str(error), entry.seeds


def _may_stand(grid: Grid, choices: Sequence[Choice]) -> bool:
    """As ``stands``, for choices that do not compose: judged on what can be set."""
    state = lenient(grid.base, choices)
    return stands(grid, state, choices)


def lenient(base: State, choices: Sequence[Choice]) -> State:
    """``compose`` without the assignments that have no place."""
    for part in _ORDER:
        for assignment in sorted((a for choice in choices for a in getattr(choice, part)), key=lambda a: len(a.path)):
            try:
                base = assign(base, assignment)
            except Unplaced:
                continue
    return base


def walk(grid: Grid, catalog: Catalog, memory_bytes: int | None = None, *, again: bool = False) -> Iterator[Point | Skip]:
    """Every trial of the grid once, and every point that cannot run.

    Args:
        again: a trial that several points share comes once for each: it may have a part in several selections.
    """
    judge = Judge(grid, Facts(catalog, memory_bytes))
    seen: set[str] = set()
    for state, seeds in points_of(grid):
        if isinstance(state, str):
            yield Skip(state, len(seeds), mistake=True)
            continue
        verdicts = [judge.judge(candidate) for candidate in candidates(state)]
        for verdict in verdicts:
            if verdict.kind == "skip":
                yield Skip(verdict.reason, len(seeds), verdict.mistake)
        for point in trials_of(judge, [verdict for verdict in verdicts if verdict.kind != "skip"], seeds):
            spec_id = point.spec.spec_id
            if again or spec_id not in seen:
                seen.add(spec_id)
                yield point


def expand(grid: Grid, catalog: Catalog, memory_bytes: int | None = None, *, again: bool = False) -> Iterator[Point]:
    """Every trial of the grid that can run, once; lazily.

    Args:
        memory_bytes: what dense weights must fit into; default: this machine's memory.
        again: see ``walk``.
    """
    return (item for item in walk(grid, catalog, memory_bytes, again=again) if isinstance(item, Point))


def trials_of(judge: Judge, verdicts: Sequence[Verdict], seeds: Sequence[int]) -> Iterator[Point]:
    """The trials of one point's candidates for every seed: the twins first, the control arms last; not told from those of other points."""
    for kind in dict.fromkeys(verdict.kind for verdict in verdicts):
        yield from _trials_of_kind(judge, [verdict for verdict in verdicts if verdict.kind == kind], seeds)


def _trials_of_kind(judge: Judge, verdicts: Sequence[Verdict], seeds: Sequence[int]) -> Iterator[Point]:
    kind, state = verdicts[0].kind, verdicts[0].state
    common: dict[str, Any] = {"resources": dict(state["resources"]), "limits": dict(state["limits"])}
    if kind == "dense":
        own = Arm.of(spec_of(s) for verdict in verdicts for s in candidates(verdict.state))
        for seed in seeds:
            for spec, selection in zip(own.specs, own.selections(), strict=True):
                yield Point(_seeded(spec, seed), "dense", selection=selection, **common)
        return
    acts = kind in ("sparse", "static")
    twins = [[] if v.infeasible else [spec_of(s) for s in candidates(judge.twin(v.state))] for v in verdicts]
    twin = _arm(spec for of_one in twins for spec in of_one)
    no_rival = judge.no_small_dense(state) if acts else None
    wanted = judge.grid.control_arms if acts else ()
    small_of = judge.small_dense if "small-dense" in wanted and not no_rival else None
    smalls = [[spec_of(s) for s in candidates(small_of(v.state))] if small_of else [] for v in verdicts]
    small = _arm(spec for of_one in smalls for spec in of_one)
    static = _arm(spec_of(judge.random_static(v.state)) for v in verdicts) if "random-static" in wanted else None
    own = Arm.of(spec_of(v.state) for v in verdicts)
    partners: dict[str, Any] = {"twin_selection": twin.id if twin else None, "rival_selection": small.id if small else None}
    partners["no_rival"] = no_rival if "small-dense" in wanted else None
    of_own = {spec_of(v.state).spec_id: i for i, v in enumerate(verdicts)}
    for seed in seeds:
        common["dense_infeasible"] = next((v.infeasible for v in verdicts if v.infeasible), None)
        for spec, selection in _with_parts(twin):
            place = {name: common[name] for name in ("resources", "limits")}
            yield Point(_seeded(spec, seed), "dense", added=True, selection=selection, **place)
        for spec, selection in _with_parts(own):
            i = of_own[spec.spec_id]
            twin_here, rival = _nth(twins[i], seed), _nth(smalls[i], seed)
            arm = "random-static" if kind == "static" else "sparse"
            steps = _steps(spec, verdicts[i].state, twins[i], seed) if acts else [(_seeded(spec, seed), None, spec)]
            for one, start, row0 in steps:
                last = one is steps[-1][0]
                place = {**partners, "rival": rival, "selection": selection} if last else {"no_rival": _LEVEL}
                yield Point(one, arm, twin_here, start, **place, **common)
                for name in MASK_ARMS if kind == "sparse" else ():
                    if name in judge.grid.control_arms and has_mask_arm(name, verdicts[i].state):
                        place = {**place, "selection": None, "added": True}
                        yield Point(judge.mask_arm(name, one, row0.spec_id), name, twin_here, one, **place, **common)
        for spec, selection in _with_parts(static):
            beside: dict[str, Any] = {"rival": _nth(smalls[0], seed), "added": True, "selection": selection}
            yield Point(_seeded(spec, seed), "random-static", _nth(twins[0], seed), **beside, **partners, **common)
        for spec, selection in _with_parts(small):
            of_twin: dict[str, Any] = {"twin_selection": partners["twin_selection"], "selection": selection}
            yield Point(_seeded(spec, seed), "small-dense", _nth(twins[0], seed), added=True, **of_twin, **common)


def _steps(spec: TrialSpec, state: State, twins: Sequence[TrialSpec], seed: int) -> list[tuple[TrialSpec, TrialSpec | None, TrialSpec]]:
    """A sparse trial of a seed, and before it the levels of its lottery: each with what it starts from, and with itself at seed 0."""
    method, twin, twin0 = state["method"], _nth(twins, seed), _nth(twins, 0)
    lottery = method.get("lottery")
    if not lottery:
        gives = "weights" if method.get("start") == "twin" else None
        one, one0 = (_started(spec, of, twin if of == seed else twin0, twin0, gives) for of in (seed, 0))
        return [(one, twin if gives else None, one0)]
    n, found = lottery["levels"], []
    before, before0 = twin, twin0
    for level in range(1, n + 1):
        rewind = Rewind(what=lottery["rewind"], to=lottery["to"], level=level, levels=n)
        density = spec.density if level == n else spec.density ** (level / n)
        here = spec.model_copy(update={"density": density, "method": spec.method.model_copy(update={"rewind": rewind})})
        one, one0 = _started(here, seed, before, before0, "ticket"), _started(here, 0, before0, before0, "ticket")
        found.append((one, before, one0))
        before, before0 = one, one0
    return found


def _started(spec: TrialSpec, seed: int, start: TrialSpec | None, row: TrialSpec | None, gives: str | None) -> TrialSpec:
    if gives is None or start is None or row is None:
        return _seeded(spec, seed)
    return spec.model_copy(
        update={"seed": seed, "start": Start.model_validate({"trial": start.spec_id, "row": row.spec_id, "gives": gives})}
    )


def _arm(specs: Iterable[TrialSpec]) -> Arm | None:
    arm = Arm.of(specs)
    return arm if arm.specs else None


def _with_parts(arm: Arm | None) -> Iterator[tuple[TrialSpec, Selection | None]]:
    return zip(arm.specs, arm.selections(), strict=True) if arm else iter(())


def _nth(specs: Sequence[TrialSpec], seed: int) -> TrialSpec | None:
    """The trial of a seed that stands for the partner: its first candidate where the partner is tuned."""
    return _seeded(specs[0], seed) if specs else None


def _seeded(spec: TrialSpec, seed: int) -> TrialSpec:
    return spec.model_copy(update={"seed": seed})


def count(grid: Grid) -> int:
    """How many points the grid has, seeds included, before skips: exact, by multiplication."""
    from sparsefleet.grid.counting import count_points

    return count_points(grid)
