"""Everything public that plugins rest on, as JSON: stored per minor release in ``docs/schemas/plugin-api-X.Y.json`` and compared with later code."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import sparsefleet
from sparsefleet import errors, hookspecs, testing
from sparsefleet.deprecated import Deprecation
from sparsefleet.nn import CooLinear
from sparsefleet.trial.record import Record
from sparsefleet.trial.spec import TrialSpec

FOLDER = Path(__file__).parent / "schemas"
Api = dict[str, Any]


def public_api() -> Api:
    """Every public name with what it is: a class and each ``Class.member``, a fact's value, a call's parameters, an exit code, a JSON field."""
    found: Api = {}
    named = [(name, getattr(sparsefleet, name)) for name in sparsefleet.__all__]
    named += [(f"testing.{name}", getattr(testing, name)) for name in testing.__all__] + [("nn.CooLinear", CooLinear)]
    for name, value in named:
        if inspect.isclass(value):
            found[name] = "class"
            found |= {f"{name}.{member}": told for member, told in _members(value)}
        else:
            found[name] = _parameters(value)
    found |= {name: _parameters(value) for name, value in vars(hookspecs).items() if name.startswith("sparsefleet_")}
    found |= {f"exit code of {name}": cls.exit_code for name, cls in vars(errors).items() if hasattr(cls, "exit_code")}
    for schema, model in (("sf-record-1", Record), ("sf-spec-1", TrialSpec)):
        found |= {f"{schema}.{name}": "field" for name in model.model_fields}
    return dict(sorted(found.items()))


def _members(cls: type) -> Iterator[tuple[str, Any]]:
    """Facts with their values, fields with their defaults, methods with their parameters; what a base of ours says is part of it."""
    bases = [base for base in reversed(cls.__mro__) if base.__module__.startswith("sparsefleet")]
    if issubclass(cls, BaseModel):
        yield from ((name, repr(field.default)) for name, field in cls.model_fields.items())
        for name in sorted(n for n in cls.__class_vars__ if not n.startswith(("_", "model_"))):
            yield name, repr(getattr(cls, name)) if hasattr(cls, name) else "required"
    for base in bases if cls is not CooLinear else [cls]:
        for name, value in vars(base).items():
            if name.startswith(("_", "model_")):
                continue
            if inspect.isfunction(value) or isinstance(value, (classmethod, staticmethod)):
                yield name, _parameters(getattr(cls, name))
            elif isinstance(value, property):
                yield name, "property"
        if not issubclass(base, BaseModel):
            yield from ((name, "attribute") for name in inspect.get_annotations(base) if not name.startswith("_"))


def _parameters(function: Any) -> list[str]:
    """Names in order, ``name=`` where there is a default, ``*`` before those that go by name."""
    told, marked = [], False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not marked:
            marked = True
            told.append("*")
        star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        told.append(f"{star}{parameter.name}" + ("" if parameter.default is parameter.empty else "="))
    return told


def broken(stored: Api, now: Api, table: tuple[Deprecation, ...], release: str) -> list[str]:
    """What of ``stored`` is gone or changed although the table does not have it as due in ``release``, one sentence each."""
    due = {entry.what for entry in table if _minor(entry.removed_in) <= _minor(release)}
    found = []
    for what, was in stored.items():
        if what in due or what.rpartition(".")[0] in due:
            continue
        if what not in now:
            found.append(f"{what} is gone; it was {_told(was)}")
        elif now[what] != was and not _is_wider(what, was, now[what]):
            found.append(f"{what} was {_told(was)} and is {_told(now[what])}")
    return found


def _is_wider(what: str, was: Any, now: Any) -> bool:
    """Whether a call takes all it took: hooks may get arguments, since implementations leave out what they do not use, others optional ones.

    What plugins override and the core calls must stay as it is.
    """
    owner = what.rpartition(".")[0]
    overridden = inspect.isclass(cls := getattr(sparsefleet, owner, None)) and issubclass(cls, sparsefleet.Plugin)
    if not isinstance(was, list) or not isinstance(now, list) or overridden or now[: len(was)] != was:
        return False
    return what.startswith("sparsefleet_") or all(part == "*" or part.endswith("=") for part in now[len(was) :])


def _told(value: Any) -> str:
    return f"({', '.join(value)})" if isinstance(value, list) else str(value)


def _minor(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split(".")[:2])


def path_of(release: str) -> Path:
    """Where a minor release's names are stored."""
    return FOLDER / f"plugin-api-{'.'.join(map(str, _minor(release)))}.json"


def render() -> str:
    """The file of the current release: what it held and what is new.

    Raises:
        SystemExit: something that it held is gone or changed.
    """
    path, now = path_of(sparsefleet.__version__), public_api()
    if path.is_file():
        lost = broken(json.loads(path.read_text(encoding="utf-8"))["names"], now, (), sparsefleet.__version__)
        if lost:
            raise SystemExit(
                "\n".join(lost) + f"\n  fix: restore it, or put it into sparsefleet/deprecated.py first; before the release of"
                f" {sparsefleet.__version__} one may also delete {path.name} and generate it anew"
            )
    return json.dumps({"schema": 1, "release": path.stem.rpartition("-")[2], "names": now}, indent=1) + "\n"
