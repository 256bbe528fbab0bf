"""What a grid with ``select`` must not ask for; found when it is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sparsefleet.grid.expand import lenient
from sparsefleet.grid.model import Choice, Grid
from sparsefleet.grid.selecting import places
from sparsefleet.grid.settings import Assignment, Path
from sparsefleet.grid.yaml_source import Key

Problem = tuple[Key, str]
_NO_SHARE = "validation: 0 leaves nothing for select to choose by; give a share, or single values"


def selection_problems(grid: Grid) -> Iterator[Problem]:
    """Problems as (key, message); none for a grid without ``select``."""
    chosen = dict(_selections(grid))
    if chosen or _of_dense(grid):
        yield from _without_validation(grid, bool(chosen))
        yield from _conditions(grid, chosen)
        yield from _inside(grid, chosen)
        yield from _starts(grid)


def _choices(grid: Grid) -> Iterator[tuple[Key, Assignment]]:
    for axis in grid.axes:
        for j, choice in enumerate(axis.choices):
            yield from ((("axes", axis.name, j), a) for a in (*choice.sets, *choice.overrides))
    for i, entry in enumerate(grid.include):
        yield from ((("include", i), a) for a in entry.sets)


def _selections(grid: Grid) -> Iterator[tuple[Path, Key]]:
    """Every place that some point selects, and the key that says so."""
    for key, assignment in _choices(grid):
        for inner, _ in places(assignment.value):
            yield (*assignment.path, *inner), key
    for path, _ in places(grid.base):
        yield path, (path[0],)


def _of_dense(grid: Grid) -> list[Path]:
    return [(*a.path, *inner) for a in grid.dense for inner, _ in places(a.value)]


def _without_validation(grid: Grid, of_points: bool) -> Iterator[Problem]:
    always = any(axis.name == "validation" and not any(choice.when for choice in axis.choices) for axis in grid.axes)
    if grid.base["validation"] == 0 and not always and (grid.has_product or not grid.include):
        yield ("validation",), _NO_SHARE
    for key, assignment in _choices(grid):
        if assignment.path == ("validation",) and assignment.value == 0 and key[0] == "axes":
            yield key, _NO_SHARE
    for i, entry in enumerate(grid.include):
        state = lenient(grid.base, [Choice(entry.sets)])
        if state["validation"] == 0 and (_of_dense(grid) or any(True for _ in places(state))):
            yield ("include", i), _NO_SHARE


def _conditions(grid: Grid, chosen: dict[Path, Key]) -> Iterator[Problem]:
    """A condition cannot read what is only known after the training."""
    found: list[tuple[Key, Any]] = [(("exclude", i), condition) for i, condition in enumerate(grid.exclude)]
    found += [
        (("axes", axis.name, j), condition)
        for axis in grid.axes
        for j, choice in enumerate(axis.choices)
        for condition in choice.when
        if not condition.negated
    ]
    for key, condition in found:
        for atom in condition.atoms:
            for path in atom.reads:
                selected = [place for place in chosen if _reads(path, atom.allowed, place)]
                if selected:
                    yield key, f"tests {'.'.join(selected[0])}, which select chooses only after the training"


def _reads(path: Path, allowed: tuple[Any, ...], place: Path) -> bool:
    if path[: len(place)] == place:
        return True
    if place[: len(path)] != path:
        return False
    inner = place[len(path) :]
    return any(_names(value, inner) for value in allowed)


def _names(value: Any, inner: Path) -> bool:
    for part in inner:
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True


def _inside(grid: Grid, chosen: dict[Path, Key]) -> Iterator[Problem]:
    for key, assignment in _choices(grid):
        for place in chosen:
            if assignment.path[: len(place)] == place and assignment.path != place:
                yield key, f"sets {'.'.join(assignment.path)}, but {'.'.join(place)} is selected as a whole"


def _starts(grid: Grid) -> Iterator[Problem]:
    tuned = _of_dense(grid)
    methods = [(key, a.value) for key, a in _choices(grid) if a.path == ("method",)]
    methods += [(("method",), grid.base["method"])] if "method" in grid.base else []
    for key, method in methods:
        if tuned and method.get("start") == "twin":
            yield (
                key,
                f"start: twin needs one twin, but dense: selects {'.'.join(tuned[0])}; select it in the base, so that both arms have it",
            )
