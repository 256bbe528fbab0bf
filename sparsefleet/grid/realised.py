"""Whether a layer can hold the density that is asked, and whether connections that are given fit it; before a trial runs."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from sparsefleet.errors import UserError
from sparsefleet.grid.need import Chain
from sparsefleet.grid.settings import State
from sparsefleet.sparsity.distribute import distribute
from sparsefleet.sparsity.fitted import expected_nnz

if TYPE_CHECKING:
    from sparsefleet.registry import Catalog
    from sparsefleet.trial.spec import TrialSpec

WITHIN = 0.1
"""How far, relatively, the density that a layer can hold may lie from the one that the grid names."""


def shapes_of(state: State, chain: Chain) -> dict[str, tuple[int, int]] | None:
    """``(out, in)`` of the layers that become sparse, or None where ``keep_dense`` names layers that a chain of widths does not know."""
    shapes = {f"{i}": (n_out, n_in) for i, (n_in, n_out) in enumerate(pairwise(chain.widths))}
    known = {"first": "0", "last": f"{len(shapes) - 1}"}
    kept = state["method"].get("keep_dense") or ()
    if any(name not in known for name in kept):
        return None
    return {name: shape for name, shape in shapes.items() if name not in {known[one] for one in kept}}


def too_thin(state: State, chain: Chain) -> str | None:
    """Why the density leaves no connection for each layer, or None if it does."""
    shapes = shapes_of(state, chain)
    try:
        _ = shapes and distribute(shapes, state["density"], "uniform")
    except UserError as error:
        return f"{error.what}; {error.fix}"
    return None


def holds_units(of_layer: dict[str, Any]) -> bool:
    """Whether the layer holds whole inputs per unit or whole blocks, or may come to be one that does."""
    return of_layer.get("topology") in ("constant-fan-in", "block") or bool(of_layer.get("chooses"))


def density_misfit(state: State, chain: Chain, topology: str, tile: int) -> str | None:
    """Why the layer's topology cannot hold the density that the state asks for, or None if it can, within a tenth.

    ``global`` and ``n:m`` are not judged: scores alone say what each layer keeps of the former, and the latter is its own density.
    """
    method, density = state["method"], state["density"]
    kind, pattern = method.get("distribution", "uniform"), next(iter(method.get("pattern") or {"unstructured": {}}))
    shapes = shapes_of(state, chain)
    if topology not in ("constant-fan-in", "block") or kind == "global" or pattern == "n:m" or not shapes:
        return None

    def held(asked: float) -> float:
        nnz = distribute(shapes, asked, kind)
        n_held = sum(expected_nnz(nnz[name], shape, topology, tile) for name, shape in shapes.items())
        return n_held / sum(n_out * n_in for n_out, n_in in shapes.values())

    nearest = held(density)
    if abs(nearest / density - 1) <= WITHIN:
        return None
    layer = next(iter(state["layer"]))
    what = "whole inputs per unit" if topology == "constant-fan-in" else f"whole blocks of {tile} x {tile}"
    best = "it would connect everything" if nearest >= 1 else f"the nearest that it holds is {nearest:.3g}"
    return f"layer={layer} holds {what}, which at these widths cannot be density {density:g}; {best}"


def is_settled(state: State, of_connectivity: dict[str, Any]) -> bool:
    """Whether the connectivity and not the density says how many connections there are."""
    ((_, given),) = (state.get("connectivity") or {"random": {}}).items()
    decides = of_connectivity.get("settled_by")
    return bool(decides and state["method"].get("rewirer") and given.get(decides) is not None)


def given_misfit(spec: TrialSpec, catalog: Catalog) -> str | None:
    """Why the connections that a connectivity is given do not fit the trial, or None if they do. Builds the network without its weights."""
    from sparsefleet.home import data_root
    from sparsefleet.registry import Registry
    from sparsefleet.trial.build import check_connectivity

    try:
        check_connectivity(spec, Registry(catalog), data_root())
    except UserError as error:
        return "; ".join(part for part in (error.what, error.cause, error.fix) if part)
    return None
