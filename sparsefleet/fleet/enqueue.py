"""From a grid to the rows of a sweep, with the keys under which results are cached. Imports no torch while the caches are warm, and no ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsefleet.grid.expand import Point, expand
from sparsefleet.grid.model import Grid
from sparsefleet.ledger import SweepTrial, open_ledger
from sparsefleet.trial.identity import code_of, data_digest, device_class
from sparsefleet.trial.record import RECORD_SCHEMA
from sparsefleet.trial.spec import PluginRef, TrialSpec, digest

if TYPE_CHECKING:
    from sparsefleet.registry import Catalog


def enqueue(grid: Grid, catalog: Catalog, home: Path, data_root: Path, *, keep: Callable[[Point], bool] | None = None) -> str:
    """Write the grid's trials to the home's ledger; the sweep's id. Nothing is run.

    Args:
        keep: the points to enter, for a sweep that is only a part of the grid; what they start from and compare with comes along.

    Raises:
        UserError: a data set is not there, or no point is kept.
        SweepLocked: a driver is running the sweep with other trials.
    """
    trials = list(sweep_trials(grid, catalog, data_root, keep=keep))
    settings = {"measure": grid.measure.model_dump(mode="json"), "max_parallel": grid.max_parallel, "data_root": str(data_root)}
    with open_ledger(home) as ledger:
        ledger.create_sweep(grid.sweep, grid.name, grid.digest, grid.text, settings, trials)
    return grid.sweep


def sweep_trials(grid: Grid, catalog: Catalog, data_root: Path, *, keep: Callable[[Point], bool] | None = None) -> Iterator[SweepTrial]:
    """The grid's trials with their keys, in the grid's order."""
    keys = Keys(catalog, data_root)
    points = list(expand(grid, catalog))
    chosen = _with_company([p for p in points if keep(p)], points) if keep else points
    for ordinal, point in enumerate(chosen):
        yield SweepTrial(
            ordinal=ordinal,
            key=keys.key(point.spec, point.resources),
            spec_id=point.spec.spec_id,
            spec=point.spec.to_json(),
            arm=point.arm,
            twin_key=keys.key(point.twin, point.resources) if point.twin else None,
            rival_key=keys.key(point.rival, point.resources) if point.rival else None,
            depends_on=keys.key(point.start, point.resources) if point.start else None,
            resources=point.resources,
            limits=point.limits,
            request={
                **keys.request(point.spec, point.resources),
                **({"dense_infeasible": point.dense_infeasible} if point.dense_infeasible else {}),
            },
        )


def _with_company(kept: list[Point], points: list[Point]) -> list[Point]:
    wanted = {p.spec.spec_id for p in kept}
    wanted |= {other.spec_id for p in kept for other in (p.twin, p.start, p.rival) if other is not None}
    return [p for p in points if p.spec.spec_id in wanted]


class Keys:
    """Trial keys: the digest of everything that a trial's result depends on."""

    def __init__(self, catalog: Catalog, data_root: Path) -> None:
        self._catalog, self._data_root = catalog, data_root
        self._data: dict[str, str] = {}
        self._known: dict[str, str] = {}

    def request(self, spec: TrialSpec, resources: dict[str, Any]) -> dict[str, Any]:
        """What a trial needs besides its spec; goes into the record."""
        device = "cuda" if resources.get("gpus", 0) else "cpu"
        return {
            "code": code_of(spec, self._catalog),
            "data": {spec.dataset.name: self._data_of(spec.dataset)},
            "threads": int(resources.get("cpus", 1)),
            "device": device,
            "device_class": device_class(device),
            "data_root": str(self._data_root),
        }

    def key(self, spec: TrialSpec, resources: dict[str, Any]) -> str:
        """sha256 over the spec, the code and the data, and the thread count and class of the device."""
        asked = digest([spec.to_json(), resources])
        if asked not in self._known:
            depends = {name: value for name, value in self.request(spec, resources).items() if name != "data_root"}
            self._known[asked] = digest({"spec": spec.to_json(), "record": RECORD_SCHEMA, **depends})
        return self._known[asked]

    def _data_of(self, dataset: PluginRef) -> str:
        slot = digest(dataset.model_dump(mode="json"))
        if slot not in self._data:
            self._data[slot] = data_digest(dataset, self._catalog, self._data_root)
        return self._data[slot]
