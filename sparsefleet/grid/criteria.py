"""What a pruning criterion cannot be asked for, told before anything is trained; nothing here knows a plugin by name."""

from __future__ import annotations

from typing import Any

from sparsefleet.grid.settings import State


def criterion_misfit(state: State, of_pruner: dict[str, Any], info: dict[str, Any] | None) -> str | None:
    """Why the criterion of a resolved state has nothing to score, or None if it has.

    Args:
        of_pruner: the pruner's class facts.
        info: of the data set, where it is known.
    """
    method = state["method"]
    name = next(iter(method["pruner"]))
    if of_pruner.get("revives") and not method.get("lottery") and _begins(method) == 0:
        return (
            f"{name} scores what training has moved, and the first pruning is before the first step; schedule: cubic, or a one-shot later"
        )
    if of_pruner.get("sequential") and method.get("distribution") == "global":
        return f"{name} prunes one layer after the other, and distribution global compares them all; distribution: uniform"
    if of_pruner.get("balanced_calibration") and (info or {}).get("task") == "regression":
        return f"{name} draws its examples by class, and {next(iter(state['dataset']))} has none"
    return None


def _begins(method: State) -> float:
    """The share of the training at which the first pruning takes place; that of a gradual schedule is never the first step."""
    ((kind, parameters),) = (method.get("schedule") or {"one-shot": {}}).items()
    return float(parameters.get("at", 0.0)) if kind == "one-shot" else 1.0
