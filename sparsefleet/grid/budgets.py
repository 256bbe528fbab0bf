"""How a twin is trained otherwise than its trial."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sparsefleet.grid.selecting import Select
from sparsefleet.grid.settings import State


def budget_difference(twin: State, trial: State) -> str | None:
    """How the twin is trained otherwise than its trial, in words, or None."""
    parts = []
    for key in ("optimizer", "train", "init"):
        ours, its = dict(_flat(twin[key], key)), dict(_flat(trial[key], key))
        parts += [
            f"{name} {ours.get(name, '–')} (trial: {its.get(name, '–')})"
            for name in sorted({*ours, *its})
            if ours.get(name) != its.get(name)
        ]
    return ", ".join(parts) or None


def _flat(value: Any, name: str) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Select):
        yield name, f"select {', '.join(map(str, value.values_))}"
        return
    if not isinstance(value, dict) or not value:
        yield name, value if not isinstance(value, dict) else "–"
        return
    for key, inner in value.items():
        yield from _flat(inner, f"{name}.{key}")
