"""Checks for a plugin of any family: its name, its hyper-parameters, its immutability."""

from __future__ import annotations

import re
from typing import Any

import torch

from sparsefleet.plugin import FAMILIES, Plugin
from sparsefleet.testing.expect import expect

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "enum", "const"}


def has_a_name(plugin: Plugin) -> None:
    """Grids name plugins in lower case with hyphens."""
    expect(
        _NAME.fullmatch(plugin.name) is not None,
        "a name of lower-case letters, digits and hyphens",
        repr(plugin.name),
        'set name = "my-method" in the class',
    )
    expect(plugin.family in FAMILIES, f"a family of {', '.join(FAMILIES)}", repr(plugin.family), "subclass one of the family classes")


def explains_itself(plugin: Plugin) -> None:
    """`plugins show` and the generated docs print the docstring and the help of every hyper-parameter."""
    cls = type(plugin)
    expect(bool((cls.__doc__ or "").strip()), "a docstring on the class", None, "say in one line what the method does")
    for name, field in cls.model_fields.items():
        expect(bool(field.description), f"help for the hyper-parameter {name!r}", None, f'{name}: ... = Field(..., description="…")')


def bounds_its_numbers(plugin: Plugin) -> None:
    """A grid is refused at plan time only where a bound says so."""
    for name, schema in type(plugin).model_json_schema().get("properties", {}).items():
        for part in [schema, *schema.get("anyOf", [])]:
            if part.get("type") in ("integer", "number"):
                expect(
                    bool(_BOUNDS & part.keys()),
                    f"a bound on the number {name!r}",
                    "none",
                    f"{name}: ... = Field(..., ge=0), or another of ge, gt, le, lt",
                )


def survives_json(plugin: Plugin) -> None:
    """A trial carries its plugins as JSON; they must come back equal."""
    again = type(plugin).model_validate_json(plugin.model_dump_json())
    expect(again == plugin, "an equal plugin after a round trip through JSON", again, "use plain types for hyper-parameters")


def is_immutable(plugin: Plugin) -> None:
    """State lives in ``conn.state`` or in the module, where the core checkpoints it; never in the plugin."""
    expect(bool(plugin.model_config.get("frozen")), "a frozen model", "frozen=False", "leave model_config alone")
    held: list[Any] = [*vars(plugin).values(), *(plugin.__pydantic_private__ or {}).values()]
    tensors = [value for value in held if isinstance(value, torch.Tensor)]
    expect(not tensors, "no tensor in the plugin", f"{len(tensors)} tensors", "keep it in conn.state or in the module")


CHECKS = (has_a_name, explains_itself, bounds_its_numbers, survives_json, is_immutable)
