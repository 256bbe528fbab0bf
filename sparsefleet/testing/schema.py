"""Checks that a plugin's JSON schema and its class say the same: plans refuse by the schema, trials by the class."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from pydantic import ValidationError

from sparsefleet.plugin import Plugin
from sparsefleet.testing.expect import expect, fail

_UNKNOWN = "no_such_parameter"


def has_a_json_schema(plugin: Plugin) -> None:
    """The hyper-parameters have a JSON schema (Draft 2020-12), which their defaults and this plugin satisfy."""
    schema = type(plugin).model_json_schema()
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        fail("a schema of JSON Schema Draft 2020-12", error.message, "leave json_schema_extra out, or write valid keywords into it")
    for name, prop in schema.get("properties", {}).items():
        if "default" in prop:
            problem = _refusal({"$defs": schema.get("$defs", {}), **prop}, prop["default"])
            expect(not problem, f"a default of {name!r} within its own bounds", problem, "mend the default or the bound")
    problem = _refusal(schema, plugin.model_dump(mode="json"))
    expect(not problem, "this plugin's hyper-parameters within the schema", problem, "let type, bounds and serialisation agree")


def is_refused_alike(plugin: Plugin) -> None:
    """A value just outside a bound, an unknown choice and an unknown parameter are refused by the schema and by the class alike."""
    cls, schema = type(plugin), type(plugin).model_json_schema()
    given = plugin.model_dump(mode="json")
    probes = [(name, value) for name, prop in schema.get("properties", {}).items() for value in _outside(prop, schema)]
    for name, value in [*probes, (_UNKNOWN, 1)]:
        by_schema, by_class = _refusal(schema, {**given, name: value}), _class_refusal(cls, {**given, name: value})
        if not by_schema and name != _UNKNOWN:
            continue  # another alternative of the type takes it
        expect(
            bool(by_schema) and bool(by_class),
            f"{name}={value!r} refused by the schema and by the class",
            f"{'the class' if by_schema else 'the schema'} takes it",
            "declare bounds in Field(..., ge=0) and leave model_config alone; json_schema_extra binds nobody",
        )


def _refusal(schema: Mapping[str, Any], value: Any) -> str:
    error = next(Draft202012Validator(schema).iter_errors(value), None)
    return "" if error is None else error.message


def _class_refusal(cls: type[Plugin], values: dict[str, Any]) -> str:
    try:
        cls(**values)
    except ValidationError as error:
        return str(error)
    return ""


def _outside(prop: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[Any]:
    """Values next to each bound, on the wrong side, and a choice that does not exist."""
    for part in [prop, *prop.get("anyOf", [])]:
        if "$ref" in part:
            part = schema.get("$defs", {}).get(part["$ref"].rpartition("/")[2], {})
        whole = part.get("type") == "integer"
        if "minimum" in part:
            yield part["minimum"] - 1 if whole else math.nextafter(part["minimum"], -math.inf)
        if "maximum" in part:
            yield part["maximum"] + 1 if whole else math.nextafter(part["maximum"], math.inf)
        yield from (part[bound] for bound in ("exclusiveMinimum", "exclusiveMaximum") if bound in part)
        if "enum" in part or "const" in part:
            yield "no-such-choice"


CHECKS = (has_a_json_schema, is_refused_alike)
