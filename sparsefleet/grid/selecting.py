"""``select:``: several candidates in place of one value, of which the validation share chooses.

In a state a choice that is still open is a ``Select``, a dict with the one key ``select``, so that states stay JSON. Nothing chooses here: every
candidate becomes a trial for every seed, and the report picks from their records.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from sparsefleet.errors import UserError
from sparsefleet.grid.settings import Assignment, Path, State, assign
from sparsefleet.trial.spec import TrialSpec, canonical_json, digest

MAX_CANDIDATES = 1000


class Select(dict[str, Any]):
    """The candidates of one place."""

    def __init__(self, values: Sequence[Any]) -> None:
        super().__init__(select=list(values))

    @property
    def values_(self) -> list[Any]:
        """The candidates as written."""
        values: list[Any] = self["select"]
        return values


def is_written(raw: Any) -> bool:
    """Whether a raw value of a file is ``{select: …}``."""
    return isinstance(raw, dict) and list(raw) == ["select"]


def places(value: Any, path: Path = ()) -> Iterator[tuple[Path, Select]]:
    """Every open choice in a state or a part of one, with its place."""
    if isinstance(value, Select):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from places(inner, (*path, key))


def is_open(assignments: Iterable[Assignment]) -> bool:
    """Whether any of them leaves a choice open."""
    return any(True for a in assignments for _ in places(a.value))


def picks_of(state: State, among: Sequence[Path] | None = None) -> list[tuple[Assignment, ...]]:
    """One tuple of assignments per candidate of ``state``, the last choice varying fastest; one empty tuple if none is open.

    Args:
        among: only the choices at, above or below one of these places.

    Raises:
        UserError: there are more than 1,000.
    """
    found = [(path, choice) for path, choice in places(state) if among is None or any(_overlap(path, other) for other in among)]
    n = prod(len(choice.values_) for _, choice in found)
    if n > MAX_CANDIDATES:
        raise UserError(
            f"{n:,} candidates for one point of the grid", cause=f"at most {MAX_CANDIDATES:,} are tried", fix="select among fewer"
        )
    return list(product(*([Assignment(path, value) for value in choice.values_] for path, choice in found)))


def candidates(state: State) -> list[State]:
    """The states without open choices that ``state`` stands for."""
    return [_with(state, picks) for picks in picks_of(state)]


def first_candidate(state: State) -> State:
    """The first candidate of ``state``."""
    return _with(state, picks_of(state)[0])


def _with(state: State, picks: Iterable[Assignment]) -> State:
    for pick in picks:
        state = assign(state, pick)
    return state


def _overlap(a: Path, b: Path) -> bool:
    shorter = min(len(a), len(b))
    return a[:shorter] == b[:shorter]


@dataclass(frozen=True)
class Selection:
    """The part that a trial has in a selection.

    Attributes:
        id: the same for all candidates and seeds of one selection, and for no other.
        candidate: its number, in the order of the file; of ``n``.
        paths: places of the spec at which the candidates differ.
    """

    id: str
    candidate: int
    n: int
    paths: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As the ledger and MLflow keep it."""
        return {"id": self.id, "candidate": self.candidate, "n": self.n, "paths": list(self.paths)}


@dataclass(frozen=True)
class Arm:
    """What stands for one arm of a point: its candidates as trials of seed 0, in the order of the file; one candidate is no selection."""

    specs: tuple[TrialSpec, ...]

    @staticmethod
    def of(specs: Iterable[TrialSpec]) -> Arm:
        """The arm with equal candidates taken once: what a twin forgets does not tell its candidates apart."""
        return Arm(tuple({spec.spec_id: spec for spec in specs}.values()))

    def selections(self) -> tuple[Selection | None, ...]:
        """One per candidate; None for the only one."""
        if len(self.specs) == 1:
            return (None,)
        bodies = [spec.to_json() for spec in self.specs]
        flat = [dict(_leaves(body)) for body in bodies]
        every = dict.fromkeys(path for one in flat for path in one)
        paths = tuple(path for path in every if len({canonical_json(one.get(path)) for one in flat}) > 1)
        name = digest(bodies)[:12]
        return tuple(Selection(name, i, len(self.specs), paths) for i in range(len(self.specs)))

    @property
    def id(self) -> str | None:
        """Of its selection; None if there is none."""
        own = self.selections()[0]
        return own.id if own else None


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
