"""A loaded grid: plain data, nothing expanded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sparsefleet.grid.settings import Assignment, Measure, Path, State, value_at
from sparsefleet.trial.spec import digest as digest_of

ControlArm = Literal["random-static", "small-dense", "shuffled-mask", "reinit-mask"]
ARMS: tuple[ControlArm, ...] = ("random-static", "small-dense", "shuffled-mask", "reinit-mask")
DEFAULT_ARMS: tuple[ControlArm, ...] = ("small-dense",)
"""The second baseline of every sparse result; a grid that wants none says ``control_arms: []``."""


@dataclass(frozen=True)
class Atom:
    """One key of a condition: true where the standing value is one of ``allowed``."""

    path: Path
    allowed: tuple[Any, ...]

    @property
    def reads(self) -> tuple[Path, ...]:
        """The places of a state that decide it."""
        if self.path == ("method",):
            return (("method", "pruner"), ("method", "rewirer"))
        return (self.path, ("method",), ("density",)) if self.path == ("layer",) else (self.path,)

    def holds(self, state: State) -> bool:
        """Whether ``state`` meets it."""
        if self.path == ("layer",):
            return _matches(state.get("layer") or {default_layer(state): {}}, self.allowed)
        return any(_matches(value_at(state, path), self.allowed) for path in (self.reads if self.path == ("method",) else (self.path,)))


@dataclass(frozen=True)
class Condition:
    """Atoms that must all hold; ``negated`` is where an axis with ``when`` does not exist."""

    atoms: tuple[Atom, ...]
    negated: bool = False

    def holds(self, state: State) -> bool:
        """Whether ``state`` meets it."""
        return all(atom.holds(state) for atom in self.atoms) != self.negated


@dataclass(frozen=True)
class Choice:
    """One value of an axis: what it sets, what it overrides, and where it exists; ``picks`` are of selections, and only made by counting."""

    sets: tuple[Assignment, ...]
    overrides: tuple[Assignment, ...] = ()
    when: tuple[Condition, ...] = ()
    picks: tuple[Assignment, ...] = ()


@dataclass(frozen=True)
class Axis:
    """A dimension of the product."""

    name: str
    choices: tuple[Choice, ...]
    n_values: int
    """Values as written; a conditional axis has one more choice: not to exist."""


@dataclass(frozen=True)
class Include:
    """A point beside the product."""

    sets: tuple[Assignment, ...]
    seeds: Sequence[int]


@dataclass(frozen=True)
class Grid:
    """A validated grid file.

    Attributes:
        base: the state above all axes, defaults filled in; ``layer`` and ``method`` are absent unless given.
        has_product: False if the file has no axes and only its ``include`` entries run.
        dense: what the dense twin has in place of the trial's values.
        text: the file as it was read.
    """

    name: str
    base: State
    axes: tuple[Axis, ...]
    seeds: Sequence[int]
    include: tuple[Include, ...]
    exclude: tuple[Condition, ...]
    dense: tuple[Assignment, ...]
    control_arms: tuple[ControlArm, ...]
    measure: Measure
    max_parallel: int | None
    has_product: bool
    text: str
    path: str

    @property
    def digest(self) -> str:
        """sha256 of the content with its defaults: formatting, comments and the order of keys do not change it."""
        return digest_of(
            {
                "name": self.name,
                "base": self.base,
                "axes": {axis.name: [_choice_json(choice) for choice in axis.choices] for axis in self.axes},
                "seeds": _seeds_json(self.seeds),
                "include": [[_sets_json(entry.sets), _seeds_json(entry.seeds)] for entry in self.include],
                "exclude": [_condition_json(condition) for condition in self.exclude],
                "dense": _sets_json(self.dense),
                "control_arms": sorted(self.control_arms),
                "measure": self.measure.model_dump(mode="json"),
                "product": self.has_product,
            }
        )

    @property
    def sweep(self) -> str:
        """The sweep's id: the name and 8 hex digits of the digest."""
        return f"{self.name}-{self.digest[:8]}"


def default_layer(state: State) -> str:
    """The layer of a state that names none: ``masked`` where a method acts, else ``dense``."""
    method = state.get("method") or {}
    acts = bool(method.get("pruner") or method.get("rewirer")) and state.get("density", 1.0) < 1
    return "masked" if acts else "dense"


def _matches(standing: Any, allowed: tuple[Any, ...]) -> bool:
    return any(_matches_one(standing, one) for one in allowed)


def _matches_one(standing: Any, wanted: Any) -> bool:
    if isinstance(standing, Mapping) and len(standing) == 1:
        ((name, parameters),) = standing.items()
        if isinstance(wanted, str):
            return bool(name == wanted)
        if isinstance(wanted, Mapping) and len(wanted) == 1:
            ((wanted_name, wanted_parameters),) = wanted.items()
            given = wanted_parameters or {}
            return bool(name == wanted_name) and all(key in parameters and _same(parameters[key], value) for key, value in given.items())
        return False
    return _same(standing, wanted)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _sets_json(sets: Sequence[Assignment]) -> list[Any]:
    return sorted(([".".join(a.path), a.value] for a in sets), key=lambda pair: str(pair[0]))


def _condition_json(condition: Condition) -> list[Any]:
    return [
        condition.negated,
        sorted(([".".join(atom.path), list(atom.allowed)] for atom in condition.atoms), key=lambda pair: str(pair[0])),
    ]


def _choice_json(choice: Choice) -> list[Any]:
    return [_sets_json(choice.sets), _sets_json(choice.overrides), [_condition_json(condition) for condition in choice.when]]


def _seeds_json(seeds: Sequence[int]) -> Any:
    return {"first": len(seeds)} if isinstance(seeds, range) else list(seeds)
