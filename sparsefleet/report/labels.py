"""Short words for the values of a row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def labels(name: str, rows: Sequence[Row]) -> list[str]:
    """The plugin's name per row, with those parameters that differ between rows of that name."""
    values: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        for param, value in row[f"{name}_params"].items():
            values.setdefault((row[name], param), set()).add(json.dumps(value))
    found = []
    for row in rows:
        told = [f"{p}={short(v)}" for p, v in row[f"{name}_params"].items() if len(values[row[name], p]) > 1]
        found.append(row[name] + (f" {', '.join(told)}" if told else ""))
    return found


def called(name: str, params: Mapping[str, Any]) -> str:
    """A plugin with the parameters that it has: ``blocks(size=8)``, ``csr``."""
    told = [f"{param}={short(value)}" for param, value in params.items() if value not in (None, [], ())]
    return f"{name}({', '.join(told)})" if told else name


def settings(values: Mapping[str, Any]) -> str:
    """Values of a spec by their dotted paths, a plugin as ``called``: ``connectivity=blocks(size=8), train.epochs=3``."""
    found = []
    for path, value in values.items():
        family, _, inside = path.partition(".")
        if inside == "name" and value is not None:
            of = f"{family}.params."
            params = {p.removeprefix(of): v for p, v in values.items() if p.startswith(of)}
            found.append(f"{family}={called(value, params)}")
        elif not (inside.startswith("params") and f"{family}.name" in values) and value != {}:
            found.append(f"{path.removeprefix('method.').replace('.params.', '.')}={short(value)}")
    return ", ".join(found)


def short(value: Any) -> str:
    """``0.1``, ``512×256``, ``fc1:4,fc2:4`` for pairs, ``–`` for nothing."""
    if value in (None, [], ()):
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)) and all(isinstance(item, (list, tuple)) for item in value):
        return ",".join(":".join(short(part) for part in item) for item in value)
    if isinstance(value, (list, tuple)):
        return "×".join(short(item) for item in value)
    return json.dumps(value)
