"""What a training starts with where a rewirer begins denser than asked (``Rewirer.first_density``): the one thing that a plan asks a plugin's body."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparsefleet.errors import SparsefleetError
from sparsefleet.grid.need import Chain
from sparsefleet.grid.realised import shapes_of
from sparsefleet.grid.settings import State, plugin_ref
from sparsefleet.sparsity.distribute import distribute, scaled
from sparsefleet.sparsity.starting import first_density
from sparsefleet.trial.spec import canonical_json

if TYPE_CHECKING:
    from sparsefleet.registry import Catalog


class Starts:
    """First densities, each asked for once; only a class whose facts say ``starts_denser`` is imported and built."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._known: dict[tuple[str, float], float | str] = {}

    def misfit(self, state: State, of_method: dict[str, Any]) -> str | None:
        """Why the rewirer of a resolved state cannot have its density, or None if it can."""
        first = self._first(state, of_method)
        return first if isinstance(first, str) else None

    def density_of(self, state: State, chain: Chain, of_method: dict[str, Any]) -> float:
        """Density of the layers that become sparse, together, before the first step; a layer holds at most all of its sites."""
        first, asked = self._first(state, of_method), state["density"]
        shapes = shapes_of(state, chain)
        if isinstance(first, str) or first == asked or not shapes:
            return asked if isinstance(first, str) else min(1.0, first)
        nnz = scaled(distribute(shapes, asked, state["method"].get("distribution", "uniform")), shapes, first / asked)
        return sum(nnz.values()) / sum(n_out * n_in for n_out, n_in in shapes.values())

    def _first(self, state: State, of_method: dict[str, Any]) -> float | str:
        if not of_method.get("starts_denser"):
            return float(state["density"])
        rewirer = state["method"]["rewirer"]
        slot = canonical_json(rewirer), state["density"]
        if slot not in self._known:
            self._known[slot] = self._asked(rewirer, state["density"])
        return self._known[slot]

    def _asked(self, rewirer: State, density: float) -> float | str:
        from sparsefleet.registry import Registry

        try:
            return first_density(Registry(self._catalog).build("rewirer", plugin_ref(rewirer)), density)
        except SparsefleetError as error:
            return "; ".join(part for part in (error.what, error.cause, error.fix) if part)
        except Exception as error:  # noqa: BLE001  a plugin's own mistake is a reason to skip its trials, not to end the plan
            return f"{next(iter(rewirer))} cannot start with density {density:g}: {type(error).__name__}: {error}"
