"""Mistakes that only show when the parts of a grid come together: found without expanding it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sparsefleet.grid.arms import Judge, Verdict
from sparsefleet.grid.counting import TooTangled, count_points
from sparsefleet.grid.expand import compose, lenient, stands
from sparsefleet.grid.fit import Facts
from sparsefleet.grid.model import Choice, Grid
from sparsefleet.grid.need import size_text
from sparsefleet.grid.selecting import Select, first_candidate
from sparsefleet.grid.selections import selection_problems
from sparsefleet.grid.settings import ROOT, Assignment, Path, Slot, Unplaced
from sparsefleet.grid.yaml_source import Key

if TYPE_CHECKING:
    from sparsefleet.registry import Catalog

Problem = tuple[Key, str]


def probe(grid: Grid, catalog: Catalog) -> Iterator[Problem]:
    """Problems as (key, message)."""
    misplaced = [*_misplaced(grid), *selection_problems(grid)]
    yield from misplaced
    if misplaced:
        return
    try:
        n = count_points(grid)
    except TooTangled:  # plan says so; that is no mistake
        n = 1
    if n == 0:
        yield ("exclude",) if grid.exclude else ("axes",), "'exclude' and 'when' remove every point of the grid"
        return
    judge = Judge(grid, Facts(catalog))
    yield from _absurd_widths(grid, judge)
    if grid.has_product:
        yield from _hopeless(grid, judge)
    for i, entry in enumerate(grid.include):
        try:
            verdict = judge.judge(first_candidate(compose(grid.base, [Choice(entry.sets)])))
        except Unplaced as error:
            yield ("include", i), str(error)
            continue
        if verdict.mistake:
            yield ("include", i), verdict.reason


def _assignments(grid: Grid) -> Iterator[tuple[Key, Assignment]]:
    for axis in grid.axes:
        for j, choice in enumerate(choice for choice in axis.choices if choice.sets):
            for assignment in (*choice.sets, *choice.overrides):
                yield ("axes", axis.name, j), assignment
    for i, entry in enumerate(grid.include):
        for assignment in entry.sets:
            yield ("include", i), assignment
    for assignment in grid.dense:
        yield ("dense",), assignment


def _named_part(path: Path) -> tuple[Path, str] | None:
    """``model.mlp.hidden`` leads through the plugin ``model`` named ``mlp``: (("model",), "mlp")."""
    slot: Slot | None = None
    for depth, part in enumerate(path):
        if slot is not None and slot.kind in ("plugin", "union"):
            return path[:depth], part
        slot = ROOT[part] if slot is None else slot.fields[part]
    return None


def _misplaced(grid: Grid) -> Iterator[Problem]:
    """Dotted names into something that stands nowhere in the file."""
    everything = list(_assignments(grid))
    names: dict[Path, set[str]] = {}
    for key, assignment in everything:
        named = _named_part(assignment.path)
        if named is None:
            continue
        at, name = named
        if at not in names:
            standing = [_inner(grid.base, at), *(_inner_of(other, at) for _, other in everything)]
            standing = [one for value in standing for one in (value.values_ if isinstance(value, Select) else [value])]
            names[at] = {option for value in standing if isinstance(value, dict) for option in value}
        if name not in names[at]:
            yield key, f"{'.'.join(assignment.path)} needs {'.'.join(at)} to be {name!r}, which it is nowhere in this grid"


def _inner(state: object, path: Path) -> object:
    for part in path:
        state = state.get(part) if isinstance(state, dict) else None
    return state


def _inner_of(assignment: Assignment, path: Path) -> object:
    n = len(assignment.path)
    return _inner(assignment.value, path[n:]) if assignment.path == path[:n] else None


def _absurd_widths(grid: Grid, judge: Judge) -> Iterator[Problem]:
    """A width of which not even one batch of activations fits; no storage helps."""
    places: list[tuple[Key, tuple[Choice, ...]]] = [(("model",), ())]
    places += [(("axes", axis.name, j), (choice,)) for axis in grid.axes for j, choice in enumerate(axis.choices) if _names_a_model(choice)]
    places += [(("include", i), (Choice(entry.sets),)) for i, entry in enumerate(grid.include)]
    for key, choices in places:
        state = first_candidate(lenient(grid.base, choices))
        if "model" not in state or "dataset" not in state or (choices and state["model"] == grid.base.get("model")):
            continue
        chain = judge.facts.chain(state)
        if chain is None:
            continue
        need = 4 * chain.widest * state["train"]["batch_size"]
        if need > max(judge.facts.memory, 2**40):
            yield key, f"width {chain.widest:,}: the activations of one batch of {state['train']['batch_size']} need {size_text(need)}"


def _names_a_model(choice: Choice) -> bool:
    return any(assignment.path[0] == "model" for assignment in (*choice.sets, *choice.overrides))


def _hopeless(grid: Grid, judge: Judge) -> Iterator[Problem]:
    """No value of any axis, with the first values of the others, gives a point that makes sense."""
    first = [axis.choices[0] for axis in grid.axes]
    candidates = [tuple(first)]
    for n, axis in enumerate(grid.axes):
        candidates += [(*first[:n], choice, *first[n + 1 :]) for choice in axis.choices[1:50]]
    first_mistake: Verdict | None = None
    for choices in candidates:
        try:
            state = compose(grid.base, choices)
        except Unplaced:
            return
        if not stands(grid, state, choices):
            continue
        verdict: Verdict = judge.judge(first_candidate(state))
        if not verdict.mistake:
            return
        first_mistake = first_mistake or verdict
    if first_mistake:
        yield ("axes",) if grid.axes else (first_mistake.key,), f"no point can run: {first_mistake.reason}"
