"""What grids, plans and listings know of the installed plugins: names, JSON schemas and class facts. Imports no plugin and no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sparsefleet.errors import PluginError, UnknownPlugin, did_you_mean


@dataclass(frozen=True)
class Entry:
    """One plugin of the catalogue; a module that cannot be used has one entry with family ``?`` and its entry point's name.

    Attributes:
        digest: sha256 over the plugin's code.
        state: ``ok``; ``broken``; ``conflict`` (two plugins of one name); ``unlisted`` or ``altered``, as the allow-list says.
        libraries: versions of the libraries that somebody else's plugin imports, by name.
    """

    family: str
    name: str
    distribution: str
    version: str
    module: str
    digest: str
    state: str = "ok"
    reason: str = ""
    class_name: str = ""
    schema: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    summary: str = ""
    libraries: dict[str, str] = field(default_factory=dict)


class Catalog:
    """Every installed plugin with its schema; see ``catalog()``."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = _mark_conflicts(list(entries))

    def get(self, family: str, name: str) -> Entry:
        """The usable plugin of that name.

        Raises:
            UnknownPlugin: no plugin of the family has the name.
            PluginError: it is installed, but broken or claimed by two distributions.
        """
        matches = [e for e in self.entries if e.name == name and e.family in (family, "?")]
        for entry in matches:
            if entry.state == "ok" and entry.family == family:
                return entry
        if matches:
            entry = matches[0]
            raise PluginError(
                f"{family} {name!r} of {entry.distribution} {entry.version} is {entry.state}",
                cause=entry.reason,
                fix="sparsefleet plugins list",
            )
        raise UnknownPlugin(family, name, self.names(family), unusable=sorted({_unusable(e) for e in self.entries if e.state != "ok"}))

    def names(self, family: str) -> list[str]:
        """Usable names of a family, sorted."""
        return sorted(e.name for e in self.entries if e.family == family and e.state == "ok")

    def complete(self, family: str, name: str, params: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """``params`` with every default filled in, and the problems found, as (path of the parameter, message).

        Integers become floats where the schema wants a number, so that ``1`` and ``1.0`` are the same trial.
        """
        schema = self.get(family, name).schema
        known = schema.get("properties", {})
        problems = [
            (key, f"unknown parameter {key!r} of {family} {name!r}; {did_you_mean(key, known)}") for key in params if key not in known
        ]
        full = {key: prop["default"] for key, prop in known.items() if "default" in prop}
        full.update({key: _coerce(value, known[key], schema) for key, value in params.items() if key in known})
        problems += [(key, f"{family} {name!r} needs the parameter {key!r}") for key in schema.get("required", []) if key not in params]
        given = {key: value for key, value in full.items() if key in params}
        problems += [(path, f"{family} {name!r}: {message}") for path, message in _schema_problems(given, schema)]
        return full, problems


def _unusable(entry: Entry) -> str:
    """Of a plugin file, which somebody has just named, also why."""
    first = entry.reason.splitlines()[0][:300] if entry.reason and entry.distribution.endswith(".py") else ""
    return f"{entry.distribution} ({entry.state}{f': {first}' if first else ''})"


def _coerce(value: Any, prop: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    if "$ref" in prop:
        prop = root.get("$defs", {}).get(prop["$ref"].rsplit("/", 1)[-1], {})
    kinds = {prop.get("type"), *(option.get("type") for option in prop.get("anyOf", []))}
    if isinstance(value, int) and not isinstance(value, bool) and "number" in kinds and "integer" not in kinds:
        return float(value)
    if isinstance(value, list) and "items" in prop:
        return [_coerce(item, prop["items"], root) for item in value]
    return value


def _schema_problems(params: Mapping[str, Any], schema: Mapping[str, Any]) -> list[tuple[str, str]]:
    from jsonschema import Draft202012Validator

    relaxed = {key: value for key, value in schema.items() if key not in ("required", "additionalProperties")}
    problems = []
    for error in Draft202012Validator(relaxed).iter_errors(dict(params)):
        path = ".".join(str(part) for part in error.absolute_path)
        problems.append((path, f"{path}: {_message(error)}"))
    return problems


def _message(error: Any) -> str:
    """What is wrong; of several alternatives, that of the one whose type the value has."""
    if error.validator == "enum" and isinstance(error.instance, str):
        return f"unknown {error.instance!r}; {did_you_mean(error.instance, map(str, error.validator_value))}"
    told = [inner.message for inner in error.context or () if inner.validator != "type"]
    if told or not error.context:
        return told[0] if told else str(error.message)
    return f"{error.instance!r} is not of type {' or '.join(repr(inner.validator_value) for inner in error.context)}"


def _mark_conflicts(entries: list[Entry]) -> list[Entry]:
    """Two plugins of one name: neither is used, and each names both distributions."""
    by_name: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        if entry.state == "ok":
            by_name.setdefault((entry.family, entry.name), []).append(entry)
    marked = []
    for entry in entries:
        rivals = by_name.get((entry.family, entry.name), [])
        if entry.state == "ok" and len(rivals) > 1:
            files = sorted({r.distribution for r in rivals if r.distribution.endswith(".py")})
            owners = " and ".join(sorted(f"{r.distribution} {r.version} ({r.module})" for r in rivals))
            fix = f"give the one in {files[0]} another name" if files else "uninstall one"
            reason = f"{entry.family} {entry.name!r} is taken by {owners}; {fix}"
            entry = Entry(**{**asdict(entry), "state": "conflict", "reason": reason})
        marked.append(entry)
    return sorted(marked, key=lambda e: (e.family, e.name, e.distribution))
