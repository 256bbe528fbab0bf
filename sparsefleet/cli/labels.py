"""Short names of trials for people, and the patterns that pick some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from sparsefleet.errors import UserError, did_you_mean
from sparsefleet.report.labels import called

_FIELDS = ("dataset", "model", "method", "layer", "connectivity", "activation", "density", "seed", "arm", "spec_id")


def method_label(spec: Mapping[str, Any]) -> str:
    """As in the comparison: ``magnitude+cubic``, ``set``, ``k-winners``, ``dense``."""
    method = spec["method"]
    pruner, rewirer = method.get("pruner"), method.get("rewirer")
    if pruner:
        rewind = method.get("rewind")
        schedule = (method.get("schedule") or {}).get("kind", "one-shot")
        if rewind:
            schedule = "lottery" if rewind["what"] == "weights" else "lr-rewind"
        return "+".join([pruner["name"], schedule, *(["global"] if method.get("distribution") == "global" else [])])
    if rewirer:
        return str(rewirer["name"])
    activation = spec["activation"]["name"]
    return "dense" if activation == "relu" else str(activation)


def trial_label(spec: Mapping[str, Any]) -> str:
    """``digits mlp set csr 0.1 seed 0``; a connectivity stands after the layer unless it is random."""
    names = [spec["dataset"]["name"], spec["model"]["name"], method_label(spec), _called(spec["layer"])]
    if spec["method"].get("rewirer") and spec["connectivity"]["name"] != "random":
        names.append(_called(spec["connectivity"]))
    narrowed = spec.get("narrow_to_density")
    if narrowed:
        names.append("small-dense")
    return f"{' '.join(map(str, names))} {narrowed or spec['density']:g} seed {spec['seed']}"


def _called(plugin: Mapping[str, Any]) -> str:
    return called(plugin["name"], plugin.get("params", {}))


def matches(pattern: str, spec: Mapping[str, Any], arm: str, spec_id: str) -> bool:
    """True if a trial fits ``pattern``: comma-separated ``field=glob``, all of which must hold; a bare glob is for the method.

    Raises:
        UserError: an unknown field.
    """
    values = {
        **{name: spec[name]["name"] for name in ("dataset", "model", "layer", "connectivity", "activation")},
        "method": method_label(spec),
        "density": f"{spec.get('narrow_to_density') or spec['density']:g}",
        "seed": str(spec["seed"]),
        "arm": arm,
        "spec_id": spec_id,
    }
    for part in pattern.split(","):
        field, equals, glob = part.strip().partition("=")
        if not equals:
            field, glob = "method", field
        if field not in values:
            raise UserError(f"--only {pattern!r}: unknown field {field!r}", fix=did_you_mean(field, _FIELDS))
        if not (fnmatchcase(str(values[field]), glob) or (field in ("density", "seed") and _same_number(str(values[field]), glob))):
            return False
    return True


def matches_any(patterns: Sequence[str], spec: Mapping[str, Any], arm: str, spec_id: str) -> bool:
    """True without patterns, or if one of them fits."""
    return not patterns or any(matches(p, spec, arm, spec_id) for p in patterns)


def _same_number(one: str, other: str) -> bool:
    try:
        return float(one) == float(other)
    except ValueError:
        return False
