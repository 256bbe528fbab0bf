"""Reads the parts of a parsed grid file; every problem goes to the source, so that one message has them all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sparsefleet.errors import did_you_mean
from sparsefleet.grid.model import ARMS, DEFAULT_ARMS, Atom, Axis, Choice, Condition, ControlArm, Grid, Include
from sparsefleet.grid.settings import METHOD, ROOT, Assignment, Measure, State, Unplaced, assign
from sparsefleet.grid.vocabulary import Vocabulary
from sparsefleet.grid.yaml_source import Key, Source, quoted
from sparsefleet.trial import spec as ts

if TYPE_CHECKING:
    from sparsefleet.registry import Catalog

NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,100}")
MAX_INCLUDE_SEEDS = 10_000
OTHER_KEYS = ("name", "seeds", "axes", "include", "exclude", "dense", "control_arms", "measure", "max_parallel")
_SHORT: dict[str, str] = {"pruner": "method.pruner", "rewirer": "method.rewirer"}


def read_grid(source: Source, catalog: Catalog, settings: Sequence[tuple[str, Source]] = ()) -> Grid | None:
    """The grid of ``source``, or None where problems were reported."""
    data = source.data
    if not isinstance(data, dict):
        source.report((), f"a grid is a mapping with keys such as name, dataset, model; got {'nothing' if data is None else quoted(data)}")
        return None
    return _GridReader(source, catalog, data, settings).read()


class _GridReader:
    def __init__(self, source: Source, catalog: Catalog, data: dict[str, Any], settings: Sequence[tuple[str, Source]]) -> None:
        self.source = source
        self.catalog = catalog
        self.vocabulary = Vocabulary(catalog, source)
        self.data = dict(data)
        self.settings = settings

    def read(self) -> Grid | None:
        for key, value in self.settings:
            if key in OTHER_KEYS:
                self.data[key] = value.data
        known = [*ROOT, *OTHER_KEYS]
        for key in self.data:
            if key not in known and "." not in key:
                self.source.report((key,), f"unknown key {key!r}; {did_you_mean(key, known)}")
        name = self._name()
        base = self._base()
        seeds = self._seeds(self.data.get("seeds", 1), ("seeds",), 2**31)
        axes = self._axes()
        self._refuse_settings_of_axes()
        include = self._include(seeds)
        exclude = self._exclude()
        dense = self._dense()
        arms = self._arms()
        measure = self._measure()
        max_parallel = self._max_parallel()
        self._required(base, axes, include)
        if self.source.problems:
            return None
        product = bool(axes) or not include
        grid = Grid(
            name, base, axes, seeds, include, exclude, dense, arms, measure, max_parallel, product, self.source.text, self.source.label
        )
        self._probe(grid)
        return grid

    def _refuse_settings_of_axes(self) -> None:
        """A base value under an axis of the same key would change nothing, silently."""
        axes = self.data.get("axes")
        for key, _ in self.settings:
            if isinstance(axes, dict) and key in axes:
                only = f"--only {key}=VALUE keeps a part of it" if key in ("density", "layer", "method") else "edit the axis"
                self.source.problems.append((0, f"--set {key}: the grid has an axis {key!r}, which takes its place; {only}"))

    def _name(self) -> str:
        name = self.data.get("name")
        if name is None:
            self.source.report(("name",), "name is missing: the sweep and its runs are called by it")
        elif not isinstance(name, str) or not NAME.fullmatch(name):
            self.source.report(("name",), f"must be 1 to 100 of A-Z a-z 0-9 . _ -, without a leading dot; got {quoted(name)}")
        return str(name)

    def _base(self) -> State:
        state = self._defaults()
        given: list[Assignment] = []
        for key, raw in self.data.items():
            if key in ROOT or "." in key:
                given += self.vocabulary.read(tuple(key.split(".")), raw, (key,))
        for key, value in self.settings:
            if key not in OTHER_KEYS:
                n = len(self.source.problems)
                given += self.vocabulary.read(tuple(key.split(".")), value.data, ())
                self.source.problems[n:] = [(0, f"--set {key}: {text.split(' ', 1)[-1]}") for _, text in self.source.problems[n:]]
        return self._apply(state, given, ())

    def _apply(self, state: State, given: Iterable[Assignment], key: Key) -> State:
        for assignment in sorted(given, key=lambda a: len(a.path)):
            try:
                state = assign(state, assignment)
            except Unplaced as error:
                self.source.report(key or (".".join(assignment.path),), str(error))
        return state

    def _defaults(self) -> State:
        train = ts.Train(epochs=0).model_dump(mode="json", exclude={"epochs", "lr_schedule"})
        state: State = {"density": 1.0, "validation": 0.1, "train": {**train, "lr_schedule": {"constant": {}}}}
        state["init"] = ts.Init().model_dump(mode="json")
        for block in ("resources", "limits"):
            owner = ROOT[block].owner
            assert owner is not None
            state[block] = owner().model_dump(mode="json", exclude_none=True)  # a grid's digest is that of what it says
        for family, name in (("connectivity", "random"), ("activation", "relu")):
            if family not in self.data:
                for assignment in self.vocabulary.read((family,), name, ()):
                    state = assign(state, assignment)
        return state

    def _seeds(self, raw: Any, key: Key, most: int) -> Sequence[int]:
        if isinstance(raw, int) and not isinstance(raw, bool):
            if 1 <= raw <= most:
                return range(raw)
            self.source.report(key, f"a number of seeds is 1 to {most:,}, got {raw:,}")
            return range(1)
        if not isinstance(raw, list) or not raw:
            self.source.report(key, f"must be a number of seeds or a list of them, got {quoted(raw)}")
            return range(1)
        for n, seed in enumerate(raw):
            if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
                self.source.report((*key, n), f"a seed is a whole number in [0, 2^31), got {quoted(seed)}")
            elif raw.index(seed) != n:
                self.source.report((*key, n), f"repeats seed {seed}")
        return tuple(raw)

    def _axes(self) -> tuple[Axis, ...]:
        raw = self.data.get("axes")
        if raw is None and "axes" not in self.data:
            return ()
        if not isinstance(raw, dict) or not raw:
            self.source.report(("axes",), f"must be a mapping from a key to a list of values, got {quoted(raw)}")
            return ()
        return tuple(axis for name, value in raw.items() if (axis := self._axis(name, value)) is not None)

    def _axis(self, name: str, raw: Any) -> Axis | None:
        key: Key = ("axes", name)
        if name in ("seeds", "seed"):
            self.source.report(key, "seeds stand at the top: seeds: 5, or seeds: [0, 1, 2]")
            return None
        if name.split(".")[0] not in ROOT:
            self.source.report(key, f"unknown axis {name!r}; {did_you_mean(name.split('.')[0], ROOT)}")
            return None
        when: Condition | None = None
        if isinstance(raw, dict) and "values" in raw:
            for other in raw:
                if other not in ("values", "when"):
                    self.source.report((*key, other), f"unknown key {other!r}; {did_you_mean(other, ('values', 'when'))}")
            if "when" in raw:
                when = self._condition(raw["when"], (*key, "when"), forbidden=name)
            raw, key = raw["values"], (*key, "values")
        if not isinstance(raw, list):
            self.source.report(key, f"must be a list of values, or {{values: [...], when: {{...}}}}; got {quoted(raw)}")
            return None
        if not raw:
            self.source.report(key, f"axis {name!r} has no values, so the grid has no points")
            return None
        choices = [self._choice(name, value, (*key, n), when) for n, value in enumerate(raw)]
        self._repeated(name, choices, key)
        good = [choice for choice in choices if choice is not None]
        if when is not None:
            good.append(Choice((), when=(Condition(when.atoms, negated=True),)))
        return Axis(name, tuple(good), len(raw)) if len(good) >= len(raw) else None

    def _repeated(self, name: str, choices: Sequence[Choice | None], key: Key) -> None:
        seen: dict[str, int] = {}
        for n, choice in enumerate(choices):
            if choice is not None:
                same = seen.setdefault(repr((choice.sets, choice.overrides)), n)
                if same != n:
                    self.source.report((*key, n), f"repeats axes.{name}[{same}]")

    def _choice(self, name: str, raw: Any, key: Key, axis_when: Condition | None) -> Choice | None:
        extra: dict[str, Any] = {}
        if isinstance(raw, dict) and name == "method":
            extra = {k: v for k, v in raw.items() if k not in METHOD.fields}
            raw = {k: v for k, v in raw.items() if k in METHOD.fields}
        elif isinstance(raw, dict) and "value" in raw:
            extra = {k: v for k, v in raw.items() if k != "value"}
            raw, inner = raw["value"], (*key, "value")
            return self._finish_choice(name, raw, inner, extra, key, axis_when)
        return self._finish_choice(name, raw, key, extra, key, axis_when)

    def _finish_choice(
        self, name: str, raw: Any, value_key: Key, extra: dict[str, Any], key: Key, axis_when: Condition | None
    ) -> Choice | None:
        n_before = len(self.source.problems)
        conditions = [axis_when] if axis_when is not None else []
        if "when" in extra:
            condition = self._condition(extra.pop("when"), (*key, "when"), forbidden=name)
            conditions += [condition] if condition is not None else []
        if name == "method" and isinstance(raw, str):
            self.source.report(value_key, f"a method names its kind: {{pruner: {raw}}} or {{rewirer: {raw}}}")
            return None
        sets = self.vocabulary.read(tuple(name.split(".")), raw, value_key)
        overrides = self._overrides(extra, key, allowed=METHOD.fields if name == "method" else {})
        if len(self.source.problems) > n_before:
            return None
        return Choice(tuple(sets), tuple(overrides), tuple(conditions))

    def _overrides(self, raw: dict[str, Any], key: Key, allowed: Iterable[str] = ()) -> list[Assignment]:
        found: list[Assignment] = []
        known = [*ROOT, *allowed]
        for name, value in raw.items():
            if name.split(".")[0] not in ROOT:
                self.source.report((*key, name), f"unknown key {name!r}; {did_you_mean(name, [*known, 'when'])}")
            else:
                found += self.vocabulary.read(tuple(name.split(".")), value, (*key, name))
        return found

    def _condition(self, raw: Any, key: Key, forbidden: str = "") -> Condition | None:
        if not isinstance(raw, dict) or not raw:
            self.source.report(key, f"must be a mapping such as {{layer: csr, density: [0.1, 0.02]}}, got {quoted(raw)}")
            return None
        atoms = []
        for name, value in dict[str, Any](raw).items():
            dotted: str = _SHORT.get(name, name)
            path = tuple(dotted.split("."))
            if path[0] not in ROOT:
                self.source.report((*key, name), f"unknown key {name!r}; {did_you_mean(name, [*ROOT, *_SHORT])}")
            elif ROOT[path[0]].kind == "block" and len(path) == 1 and path[0] != "method":
                self.source.report((*key, name), f"names a whole block; write {name}.KEY, e.g. {name}.{next(iter(ROOT[name].fields))}")
            elif forbidden and dotted == forbidden:
                self.source.report((*key, name), f"an axis cannot depend on itself ({name})")
            else:
                allowed = value if isinstance(value, list) else [value]
                if not allowed:
                    self.source.report((*key, name), "an empty list matches nothing")
                self._names(path, allowed, (*key, name))
                atoms.append(Atom(path, tuple([*allowed, value] if isinstance(value, list) else allowed)))
        return Condition(tuple(atoms)) if len(atoms) == len(raw) else None

    def _names(self, path: tuple[str, ...], allowed: Iterable[Any], key: Key) -> None:
        """A condition on a plugin that does not exist would silently never hold."""
        families = {("method", "pruner"): ("pruner",), ("method", "rewirer"): ("rewirer",), ("method",): ("pruner", "rewirer")}
        if len(path) == 1 and path != ("method",) and ROOT[path[0]].kind == "plugin":
            families[path] = (path[0],)
        if path not in families:
            return
        known = [name for family in families[path] for name in self.catalog.names(family)]
        for value in allowed:
            name = next(iter(value), None) if isinstance(value, dict) else value
            if name not in known and name is not None:
                self.source.report(key, f"unknown {' or '.join(families[path])} {quoted(name)}; {did_you_mean(str(name), known)}")

    def _include(self, seeds: Sequence[int]) -> tuple[Include, ...]:
        entries: list[Include] = []
        for n, raw in enumerate(self._list("include")):
            key: Key = ("include", n)
            if not isinstance(raw, dict) or not raw:
                self.source.report(key, f"must be a mapping of base keys, got {quoted(raw)}")
                continue
            own = self._seeds(raw["seeds"], (*key, "seeds"), MAX_INCLUDE_SEEDS) if "seeds" in raw else seeds
            sets = self._overrides({k: v for k, v in raw.items() if k != "seeds"}, key, allowed=("seeds",))
            entries.append(Include(tuple(sets), own))
        return tuple(entries)

    def _exclude(self) -> tuple[Condition, ...]:
        found = [self._condition(raw, ("exclude", n)) for n, raw in enumerate(self._list("exclude"))]
        return tuple(condition for condition in found if condition is not None)

    def _list(self, key: str) -> list[Any]:
        raw = self.data.get(key, [])
        if isinstance(raw, list):
            return raw
        self.source.report((key,), f"must be a list, got {quoted(raw)}")
        return []

    def _dense(self) -> tuple[Assignment, ...]:
        raw = self.data.get("dense", {})
        if not isinstance(raw, dict):
            self.source.report(("dense",), f"must be a mapping with what the dense twin has instead, got {quoted(raw)}")
            return ()
        found: list[Assignment] = []
        for name, value in raw.items():
            if name.split(".")[0] not in ("optimizer", "train", "init"):
                self.source.report(("dense", name), f"unknown key {name!r}; {did_you_mean(name, ('optimizer', 'train', 'init'))}")
            else:
                found += self.vocabulary.read(tuple(name.split(".")), value, ("dense", name))
        return tuple(found)

    def _arms(self) -> tuple[ControlArm, ...]:
        if "control_arms" not in self.data:
            return DEFAULT_ARMS
        arms: list[ControlArm] = []
        for n, raw in enumerate(self._list("control_arms")):
            key: Key = ("control_arms", n)
            if raw not in ARMS:
                self.source.report(key, f"unknown control arm {quoted(raw)}; {did_you_mean(str(raw), ARMS)}")
            elif raw in arms:
                self.source.report(key, f"{raw} is given twice")
            else:
                arms.append(raw)
        return tuple(arms)

    def _measure(self) -> Measure:
        raw = self.data.get("measure", {})
        if not isinstance(raw, dict):
            self.source.report(("measure",), f"must be a mapping with some of: {', '.join(Measure.model_fields)}; got {quoted(raw)}")
            return Measure()
        return self.vocabulary.measure(raw, ("measure",))

    def _max_parallel(self) -> int | None:
        raw = self.data.get("max_parallel")
        if raw is not None and (isinstance(raw, bool) or not isinstance(raw, int) or not 1 <= raw <= 100_000):
            self.source.report(("max_parallel",), f"must be a whole number from 1, got {quoted(raw)}")
            return None
        return raw

    def _required(self, base: State, axes: Sequence[Axis], include: Sequence[Include]) -> None:
        roots = {axis.name.split(".")[0] for axis in axes}
        every = [{a.path[0] for a in entry.sets} for entry in include]
        for key in ("dataset", "model", "optimizer"):
            beside = bool(every) and not axes and all(key in entry for entry in every)
            if key not in base and key not in self.data and key not in roots and not beside:
                self.source.report((key,), f"{key} is missing")
        epochs = ("train", "epochs")
        set_somewhere = any(a.path == epochs for axis in axes for choice in axis.choices for a in (*choice.sets, *choice.overrides))
        beside = bool(include) and not axes and all(any(a.path == epochs for a in entry.sets) for entry in include)
        train = self.data.get("train")
        if not set_somewhere and not beside and "epochs" not in base["train"] and not (isinstance(train, dict) and "epochs" in train):
            self.source.report(("train",), "train.epochs is missing")

    def _probe(self, grid: Grid) -> None:
        """Builds the point of every value once: what fits no point at all is a mistake, not a skip."""
        from sparsefleet.grid.probe import probe

        for key, message in probe(grid, self.catalog):
            self.source.report(key, message)
