"""Reads ``{select: [a, b, c]}``, which may stand wherever a value may."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sparsefleet.grid.selecting import Select
from sparsefleet.grid.settings import ROOT, Assignment, Path, Slot
from sparsefleet.grid.yaml_source import Key, quoted

if TYPE_CHECKING:
    from sparsefleet.grid.vocabulary import Vocabulary

FIXED = {
    "dataset": "results on other data do not compare",
    "density": "densities are what a grid compares: make it an axis",
    "validation": "candidates are compared on one validation share",
    "resources": "it changes no result",
    "limits": "it changes no result",
}
"""Keys that no arm may be tuned by, and why."""


def read_open(vocabulary: Vocabulary, path: Path, raw: Any, key: Key) -> list[Assignment]:
    """The assignments of ``raw``, with a ``Select`` of checked candidates wherever it says ``select``; empty where there is a problem."""
    source = vocabulary.source
    found = list(_written(raw))
    if not found:
        return vocabulary.read_plain(path, raw, key)
    n_before = len(source.problems)
    for where, values in found:
        _check(vocabulary, (*path, *where), values, (*key, *where))
    if len(source.problems) > n_before:
        return []
    firsts = raw
    for where, values in found:
        firsts = _put(firsts, where, values[0])
    assignments = vocabulary.read_plain(path, firsts, key)
    for where, values in found:
        full = (*path, *where)
        read = [_value(vocabulary.read_plain(path, _put(firsts, where, value), key), full) for value in values]
        if len(source.problems) == n_before:
            assignments = [_inserted(a, full, Select(read)) for a in assignments]
    return assignments if len(source.problems) == n_before else []


def _written(raw: Any, where: Path = ()) -> Iterator[tuple[Path, Any]]:
    if isinstance(raw, dict):
        if list(raw) == ["select"]:
            yield where, raw["select"]
            return
        for name, inner in raw.items():
            yield from _written(inner, (*where, name))


def _check(vocabulary: Vocabulary, full: Path, values: Any, key: Key) -> None:
    report = vocabulary.source.report
    if full[0] in FIXED:
        report(key, f"{'.'.join(full)} cannot be selected: {FIXED[full[0]]}")
        return
    if not isinstance(values, list) or len(values) < 2:
        report((*key, "select"), f"must be a list of two or more candidates, got {quoted(values)}")
        return
    for n, value in enumerate(values):
        if any(True for _ in _written(value)):
            report((*key, "select", n), "a candidate cannot be a selection itself")
        elif any(_same(value, other) for other in values[:n]):
            report((*key, "select", n), f"repeats the candidate {quoted(value)}")
    slot = _slot(full)
    if slot is not None and (slot.kind in ("plugin", "block")):
        example = {"plugin": "its parameters can be, e.g. {NAME: {PARAMETER: {select: [...]}}}; NAME itself is an axis"}
        report(key, f"{'.'.join(full)} cannot be selected as a whole: {example.get(slot.kind, 'its keys can be')}")


def _slot(full: Path) -> Slot | None:
    """The slot that a selection stands in; None inside a named thing."""
    fields = ROOT
    slot: Slot | None = None
    for part in full:
        if slot is not None and slot.kind in ("plugin", "union"):
            return None
        slot = dict(fields).get(part)
        if slot is None:
            return None
        fields = dict(slot.fields)
    return slot


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)


def _put(raw: Any, where: Path, value: Any) -> Any:
    if not where:
        return value
    return {**raw, where[0]: _put(raw[where[0]], where[1:], value)}


def _value(assignments: list[Assignment], full: Path) -> Any:
    """What the assignments set at the place ``full``."""
    for path, value in assignments:
        if path == full[: len(path)]:
            for part in full[len(path) :]:
                value = value[part]
            return value
    return None


def _inserted(assignment: Assignment, full: Path, choice: Select) -> Assignment:
    path = assignment.path
    return Assignment(path, _put(assignment.value, full[len(path) :], choice)) if path == full[: len(path)] else assignment
