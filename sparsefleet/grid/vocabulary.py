"""Reads raw YAML values as assignments, with every default filled in, and reports what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from sparsefleet.errors import PluginError, UnknownPlugin, UserError, did_you_mean
from sparsefleet.grid.candidates import read_open
from sparsefleet.grid.settings import METHOD, PLAIN_METHOD, ROOT, Assignment, Measure, Path, Slot, method_of
from sparsefleet.grid.yaml_source import Key, Source, quoted
from sparsefleet.registry import Registry
from sparsefleet.trial import spec as ts

if TYPE_CHECKING:
    from sparsefleet.registry import Catalog


class Vocabulary:
    """Reads raw values against the core's vocabularies and the catalogue; reports problems to a source."""

    def __init__(self, catalog: Catalog, source: Source) -> None:
        self.catalog = catalog
        self.source = source
        self._adapters: dict[tuple[type[BaseModel], str], TypeAdapter[Any]] = {}

    def read(self, path: Path, raw: Any, key: Key) -> list[Assignment]:
        """The assignments of ``raw`` at the dotted ``path``, ``select`` included; empty where there is a problem."""
        return read_open(self, path, raw, key)

    def read_plain(self, path: Path, raw: Any, key: Key) -> list[Assignment]:
        """The same for a value without ``select``."""
        slot = self._slot(path, key)
        if slot is None:
            return []
        if isinstance(slot, tuple):
            return self._parameter(path, slot, raw, key)
        if slot.kind == "block":
            return self._block(path, slot, raw, key)
        value = self._single(slot, raw, key)
        return [] if value is _BAD else [Assignment(path, value)]

    def _slot(self, path: Path, key: Key) -> Slot | tuple[Slot, str, str] | None:
        """The slot of a path, or (slot, option, parameter) for a place inside a named thing."""
        fields: Mapping[str, Slot] = ROOT
        slot: Slot | None = None
        for depth, part in enumerate(path):
            if slot is not None and slot.kind in ("plugin", "union"):
                rest = path[depth:]
                if len(rest) == 2:
                    return slot, rest[0], rest[1]
                self.source.report(key, f"{'.'.join(path)!r} names no single parameter; write {'.'.join(path[:depth])}.NAME.PARAMETER")
                return None
            if part not in fields:
                self.source.report(key, f"unknown key {'.'.join(path[: depth + 1])!r}; {did_you_mean(part, fields)}")
                return None
            slot = fields[part]
            fields = slot.fields
        return slot

    def _parameter(self, path: Path, inside: tuple[Slot, str, str], raw: Any, key: Key) -> list[Assignment]:
        slot, option, parameter = inside
        if slot.kind == "union":
            cls = slot.options.get(option)
            if cls is None:
                self.source.report(key, f"unknown {slot.family} {option!r}; {did_you_mean(option, slot.options)}")
                return []
            known = [name for name in cls.model_fields if name != "kind"]
            if parameter not in known:
                self.source.report(key, f"unknown key {parameter!r} of {option!r}; {did_you_mean(parameter, known)}")
                return []
            value = self._value(cls, parameter, raw, key)
            return [] if value is _BAD else [Assignment(path, value)]
        completed = self._complete(slot.family, option, {parameter: raw}, key)
        if completed is None:
            return []
        full, problems = completed
        own = [message for where, message in problems if where.split(".")[0] == parameter]
        for message in own:
            self.source.report(key, message)
        return [] if own or parameter not in full else [Assignment(path, full[parameter])]

    def _block(self, path: Path, slot: Slot, raw: Any, key: Key) -> list[Assignment]:
        if not isinstance(raw, dict):
            self.source.report(key, f"must be a mapping with some of: {', '.join(slot.fields)}; got {quoted(raw)}")
            return []
        found: list[Assignment] = []
        for name, value in raw.items():
            if name not in slot.fields:
                self.source.report((*key, name), f"unknown key {name!r}; {did_you_mean(name, slot.fields)}")
                continue
            single = self._single(slot.fields[name], value, (*key, name))
            if single is not _BAD:
                found.append(Assignment((*path, name), single))
        if slot is not METHOD:
            return found
        return self._method(path, {a.path[-1]: a.value for a in found}, len(found) == len(raw), key)

    def _method(self, path: Path, method: dict[str, Any], complete: bool, key: Key) -> list[Assignment]:
        """A method is replaced as a whole: its parts only make sense together."""
        if not complete:
            return []
        if not method.get("pruner") and not method.get("rewirer"):
            self.source.report(key, "names neither a pruner nor a rewirer, e.g. {pruner: magnitude} or {rewirer: set}")
            return []
        try:
            tried = method_of(method)
            lottery = method.get("lottery")
            if lottery:
                ts.Method.model_validate({**tried.model_dump(), "rewind": {"level": lottery["levels"], "levels": lottery["levels"]}})
        except ValidationError as error:
            item = error.errors()[0]
            missing = f"{'.'.join(map(str, item['loc']))} is missing" if item["type"] == "missing" else ""
            self.source.report(key, missing or str(item["msg"]).removeprefix("Value error, "))
            return []
        return [Assignment(path, {**PLAIN_METHOD, **self._made_for(method), **method})]

    def _made_for(self, method: dict[str, Any]) -> dict[str, Any]:
        """The distribution that a criterion is defined for, in place of uniform."""
        name = next(iter(method.get("pruner") or {}), None)
        made_for = self.catalog.get("pruner", name).facts.get("made_for") if name else None
        return {"distribution": made_for} if made_for else {}

    def _single(self, slot: Slot, raw: Any, key: Key) -> Any:
        if slot.kind == "value":
            assert slot.owner is not None
            return self._value(slot.owner, slot.name, raw, key)
        if raw is None and (slot.family in ("pruner", "rewirer", "schedule") or slot.kind == "block"):
            return None
        if slot.kind == "block":
            return self._inner_block(slot, raw, key)
        named = self._named(slot, raw, key)
        if named is None:
            return _BAD
        name, given = named
        if slot.kind == "plugin":
            completed = self._complete(slot.family, name, given, key)
            if completed is None:
                return _BAD
            full, problems = completed
            problems = problems or self._refused_by_class(slot.family, name, full)
            for where, message in problems:
                inside = tuple(int(part) if part.isdigit() else part for part in where.split(".")) if where else ()
                self.source.report((*key, name, *inside) if isinstance(raw, dict) else key, message)
            return _BAD if problems else {name: full}
        return self._option(slot, name, given, key)

    def _inner_block(self, slot: Slot, raw: Any, key: Key) -> Any:
        """A block inside a method: one value, as the method is."""
        if not isinstance(raw, dict) or not raw:
            self.source.report(key, f"must be a mapping with some of: {', '.join(slot.fields)}; got {quoted(raw)}")
            return _BAD
        found: dict[str, Any] = {}
        for name, value in raw.items():
            if name in slot.fields:
                found[name] = self._single(slot.fields[name], value, (*key, name))
            else:
                self.source.report((*key, name), f"unknown key {name!r}; {did_you_mean(name, slot.fields)}")
                found[name] = _BAD
        return _BAD if _BAD in found.values() else found

    def _named(self, slot: Slot, raw: Any, key: Key) -> tuple[str, dict[str, Any]] | None:
        if isinstance(raw, str):
            return raw, {}
        if isinstance(raw, dict) and len(raw) == 1:
            ((name, given),) = raw.items()
            if given is None:
                return name, {}
            if isinstance(given, dict):
                return name, given
            self.source.report((*key, name), f"must be a mapping of parameters, got {quoted(given)}")
            return None
        self.source.report(
            key, f"must be a name, or one name with its parameters such as {{name: {{parameter: value}}}}; got {quoted(raw)}"
        )
        return None

    def measure(self, given: dict[str, Any], key: Key) -> Measure:
        """The ``measure`` block."""
        options: dict[str, type[BaseModel]] = {"measure": Measure}
        found = self._option(Slot("union", "measure", options), "measure", given, key, inside=())
        return Measure() if found is _BAD else Measure(**found["measure"])

    def _option(self, slot: Slot, name: str, given: dict[str, Any], key: Key, inside: Key | None = None) -> Any:
        at = (*key, *((name,) if inside is None else inside))
        cls = slot.options.get(name)
        if cls is None:
            self.source.report(key, f"unknown {slot.family} {name!r}; {did_you_mean(name, slot.options)}")
            return _BAD
        known = [parameter for parameter in cls.model_fields if parameter != "kind"]
        unknown = [parameter for parameter in given if parameter not in known]
        for parameter in unknown:
            self.source.report((*at, parameter), f"unknown key {parameter!r} of {name!r}; {did_you_mean(parameter, known)}")
        try:
            built = cls.model_validate_json(json.dumps({k: v for k, v in given.items() if k in known}), strict=True)
        except ValidationError as error:
            for item in error.errors():
                self.source.report((*at, *item["loc"]), _message(item))
            return _BAD
        return _BAD if unknown else {name: built.model_dump(mode="json", exclude={"kind"})}

    def _value(self, cls: type[BaseModel], name: str, raw: Any, key: Key) -> Any:
        if name == "density":
            return self._density(raw, key)
        adapter = self._adapters.get((cls, name))
        if adapter is None:
            info = cls.model_fields[name]
            kind: Any = info.annotation
            for bound in info.metadata:
                kind = Annotated[kind, bound]
            adapter = self._adapters[cls, name] = TypeAdapter(kind)
        try:
            return adapter.dump_python(adapter.validate_json(json.dumps(raw), strict=True), mode="json")
        except ValidationError as error:
            for item in error.errors():
                self.source.report((*key, *item["loc"]), _message(item))
            return _BAD

    def _density(self, raw: Any, key: Key) -> Any:
        if isinstance(raw, bool) or not isinstance(raw, (int, float)) or not 0 < raw <= 1:
            hint = f" (a sparsity of {raw:g} is density {1 - raw:g})" if raw == 0 and not isinstance(raw, bool) else ""
            self.source.report(key, f"density must be a number in (0, 1], got {quoted(raw)}{hint}")
            return _BAD
        return float(raw)

    def _complete(self, family: str, name: str, given: dict[str, Any], key: Key) -> tuple[dict[str, Any], list[tuple[str, str]]] | None:
        try:
            return self.catalog.complete(family, name, given)
        except UnknownPlugin as error:
            self.source.report(key, "; ".join(part for part in (error.what, error.cause, error.fix) if part))
        except PluginError as error:
            self.source.broken += 1
            self.source.report(key, "; ".join(part for part in (error.what, error.cause, error.fix) if part))
        return None

    def _refused_by_class(self, family: str, name: str, params: dict[str, Any]) -> list[tuple[str, str]]:
        """What the plugin's own validators say, which its schema does not; only those that have any are built."""
        if not self.catalog.get(family, name).facts.get("validates"):
            return []
        try:
            Registry(self.catalog).build(family, ts.PluginRef(name=name, params=params))
        except UserError as error:
            return [("", error.what)]
        return []


class _Bad:
    pass


_BAD: Any = _Bad()


def _message(item: Any) -> str:
    kind = item["type"]
    if kind == "missing":
        return f"{item['loc'][-1]} is missing"
    if kind == "value_error":  # a check of our own, which says what it got
        return str(item["msg"]).removeprefix("Value error, ")
    if kind in ("list_type", "tuple_type"):
        given = item["input"]
        return f"must be a list, got {quoted(given)}" + (f": [{given}]" if isinstance(given, str) else "")
    text = str(item["msg"]).replace("Input should be", "must be", 1)
    return f"{text[0].lower()}{text[1:]}, got {quoted(item['input'])}"
