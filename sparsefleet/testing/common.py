"""Checks for a plugin of any family: its name, its documentation, its hyper-parameters, its immutability."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import torch

from sparsefleet.plugin import FAMILIES, Plugin
from sparsefleet.testing import imports, manners, schema
from sparsefleet.testing.expect import expect, fail

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
    for name, prop in type(plugin).model_json_schema().get("properties", {}).items():
        for part in [prop, *prop.get("anyOf", [])]:
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


def travels_between_processes(plugin: Plugin) -> None:
    """Hyper-parameters can be pickled and copied; a copy is equal and hashes alike, if it hashes."""
    try:
        pickle.dumps(plugin.model_dump())
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        fail("hyper-parameters that pickle", f"{type(error).__name__}: {error}", "use numbers, texts, booleans, tuples and None")
    twin = copy.deepcopy(plugin)
    expect(twin == plugin, "an equal copy", twin, "leave __eq__ and __deepcopy__ alone")
    if _hashes(plugin):
        expect(hash(twin) == hash(plugin), "equal plugins with equal hashes", "different ones", "leave __hash__ alone")


def _hashes(plugin: Plugin) -> bool:
    """False if a hyper-parameter is a list or a dict."""
    try:
        hash(plugin)
    except TypeError:
        return False
    return True


UNUSED = (
    has_a_name,
    explains_itself,
    bounds_its_numbers,
    *schema.CHECKS,
    survives_json,
    travels_between_processes,
    is_immutable,
    imports.imports_cleanly,
)
"""What is asked without using the plugin."""

CHECKS = (manners.runs, *UNUSED, *manners.CHECKS)
