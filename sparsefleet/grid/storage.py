"""Whether a layer can hold what a method, a pattern and a connectivity give; nothing here knows a plugin by name.

A constant fan-in and whole tiles are projected onto (``sparsefleet.nn.projection``); what contradicts them is skipped with a reason.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from sparsefleet.grid.settings import State


def missing_package(layer: str, of_layer: dict[str, Any]) -> str | None:
    """That the package whose products the layer takes is not installed, or None if it is or none is needed."""
    requires = of_layer.get("requires")
    if requires and importlib.util.find_spec(requires) is None:
        return f"layer={layer} needs the package {requires.replace('_', '-')}, which is not installed"
    return None


def storage_misfit(state: State, of_layer: dict[str, Any], of_method: dict[str, Any], of_connectivity: dict[str, Any]) -> str | None:
    """Why the layer of a resolved state cannot hold its connections, or None if it can."""
    layer, method = next(iter(state["layer"])), state["method"]
    topology = of_layer.get("topology", "free")
    misfit = _of_n_and_m(state, of_method) if method.get("rewirer") else _of_neurons(state, of_method)
    if of_layer.get("narrows") and (method.get("rewirer") or _pattern(state) != "neuron"):
        return f"layer={layer} removes whole units; it needs a pruner with pattern neuron"
    if misfit or topology in ("free", "all"):
        return misfit
    if method.get("rewirer"):
        return _of_rewirer(state, layer, topology, (of_method, of_connectivity))
    return _of_pruner(state, layer, topology, of_layer)


def _of_rewirer(state: State, layer: str, topology: str, facts: tuple[dict[str, Any], dict[str, Any]]) -> str | None:
    (of_method, of_connectivity), ((name, parameters),) = facts, state["method"]["rewirer"].items()
    ((connectivity, drawn),) = (state.get("connectivity") or {"random": {}}).items()
    given = of_connectivity.get("topology", "free")
    if topology == "n:m" and not of_method.get("n_of_m_by"):  # one that keeps n:m may need values at absent sites: told elsewhere
        return f"layer={layer} holds n:m, which {name} does not keep"
    if topology == "block":
        if not of_method.get("fits_tiles", True):
            return f"{name} decides about each connection by itself; layer={layer} holds whole blocks"
        if given == "block" and drawn.get("size") != tile_of(state):
            return f"connectivity={connectivity} draws blocks of {drawn.get('size')}, layer={layer} holds blocks of {tile_of(state)}"
    if topology == "constant-fan-in" and not of_method.get("fits_fan_in", True):
        return f"{name} does not keep a constant fan-in; layer={layer} holds equally many inputs for every output"
    if topology == "constant-fan-in" and of_method.get("redistributes"):
        return f"{name} moves connections between layers; layer={layer} holds equally many inputs for every output"
    ablates = of_method.get("ablates_by")
    if topology == "constant-fan-in" and ablates and parameters.get(ablates):
        return (
            f"{name} takes all connections from weak units; layer={layer} holds equally many inputs for every output"
            f" ({ablates}: 0 takes none)"
        )
    if topology == "constant-fan-in" and given in ("block", "row"):
        return f"connectivity={connectivity} draws whole {given}s, layer={layer} holds equally many inputs for every output"
    return None


def _of_n_and_m(state: State, of_method: dict[str, Any]) -> str | None:
    """Why a rewirer that keeps n of every m inputs cannot have the density, or None if it can or is none."""
    if not of_method.get("n_of_m_by"):
        return None
    ((name, parameters),) = state["method"]["rewirer"].items()
    n, m = (parameters[one] for one in of_method["n_of_m_by"])
    if abs(state["density"] - n / m) > 1e-6:
        return f"{name} keeps {n} of every {m} inputs, which is density {n / m:g}, not {state['density']:g}"
    kind = state["method"].get("distribution", "uniform")
    return None if kind == "uniform" else f"{name} keeps {n} of every {m} inputs in every layer, which distribution={kind} does not give"


def _pattern(state: State) -> str:
    return str(next(iter(state["method"].get("pattern") or {"unstructured": {}})))


def _of_neurons(state: State, of_method: dict[str, Any]) -> str | None:
    """Why a pruner cannot remove whole units, or None if it can or need not."""
    if _pattern(state) != "neuron":
        return None
    name = next(iter(state["method"]["pruner"]))
    if of_method.get("revives"):
        return f"{name} lets connections return; pattern neuron removes units for good"
    if of_method.get("per_row") or of_method.get("sequential"):
        return f"{name} compares the weights of one unit; pattern neuron compares units"
    return None


def _of_pruner(state: State, layer: str, topology: str, of_layer: dict[str, Any]) -> str | None:
    ((kind, pattern),) = (state["method"].get("pattern") or {"unstructured": {}}).items()
    gives = f"layer={layer} holds topology {topology}, which pattern {kind} does not give"
    if topology == "constant-fan-in":
        return None if kind in ("unstructured", "n:m") else gives
    if topology == "block":
        size = tile_of(state)
        same = kind == "unstructured" or (kind == "block" and (pattern.get("rows"), pattern.get("cols")) == (size, size))
        return None if same else f"layer={layer} holds blocks of {size}, which pattern {kind} does not give" if kind == "block" else gives
    if kind != "n:m":
        return gives
    wanted = of_layer.get("n_of_m")
    if wanted and [pattern.get("n"), pattern.get("m")] != list(wanted):
        return f"layer={layer} holds {wanted[0]}:{wanted[1]}, the pattern is {pattern.get('n')}:{pattern.get('m')}"
    return None


def width_misfit(state: State, of_layer: dict[str, Any], widths: tuple[int, ...]) -> str | None:
    """Why the layer cannot store weights of these widths, input to output, or None if it can."""
    multiple = int(of_layer.get("multiple_of", 1))
    kept = state["method"].get("keep_dense") or ()
    sides = [*([] if "first" in kept else widths[:2]), *widths[1:-1], *([] if "last" in kept else widths[-2:])]
    wrong = sorted({side for side in sides if side % multiple})
    if not wrong:
        return None
    layer = next(iter(state["layer"]))
    return f"layer={layer} needs widths that are multiples of {multiple}, and there is {wrong[0]} (keep_dense leaves first or last dense)"


def tile_of(state: State) -> int:
    """Units per side of the blocks that the layer holds; 1 for other layers."""
    (parameters,) = state["layer"].values()
    return int(parameters.get("size", 1))
