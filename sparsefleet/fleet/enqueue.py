"""From a grid to the rows of a sweep, with the keys under which results are cached. Imports no torch while the caches are warm, and no ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsefleet.crash_points import refuse_typos
from sparsefleet.errors import UserError
from sparsefleet.fleet.bundle import make_bundle
from sparsefleet.grid.expand import Point, expand
from sparsefleet.grid.model import Grid
from sparsefleet.home import artifact_root
from sparsefleet.ledger import SweepTrial, open_ledger
from sparsefleet.ledger.store import ArtifactStore
from sparsefleet.trial.identity import Keys

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
    refuse_typos()
    trials = list(sweep_trials(grid, catalog, data_root, keep=keep))
    bundle = make_bundle(catalog, {name for trial in trials for name in trial.request["code"]}, ArtifactStore(artifact_root()))
    settings = {
        "measure": grid.measure.model_dump(mode="json"),
        "max_parallel": grid.max_parallel,
        "data_root": str(data_root),
        **({"bundle": bundle} if bundle else {}),
    }
    with open_ledger(home) as ledger:
        ledger.create_sweep(grid.sweep, grid.name, grid.digest, grid.text, settings, trials)
    return grid.sweep


def sweep_trials(grid: Grid, catalog: Catalog, data_root: Path, *, keep: Callable[[Point], bool] | None = None) -> Iterator[SweepTrial]:
    """The grid's trials with their keys, in the grid's order."""
    keys = Keys(catalog, data_root)
    every = list(expand(grid, catalog, again=True))
    points = _once(every)
    chosen = _with_company([p for p in points if keep(p)], points) if keep else points
    tuning = _tuning(every)
    key_of: dict[str, str] = {}  # a shared twin is entered once, with its own resources
    for point in chosen:
        point_key(keys, point, key_of)
    for ordinal, (spec_id, point) in enumerate((point.spec.spec_id, point) for point in chosen):
        yield SweepTrial(
            ordinal=ordinal,
            key=key_of[spec_id],
            spec_id=spec_id,
            spec=point.spec.to_json(),
            arm=point.arm,
            twin_key=key_of.get(point.twin.spec_id) if point.twin else None,
            rival_key=key_of.get(point.rival.spec_id) if point.rival else None,
            depends_on=key_of[point.start.spec_id] if point.start else None,
            resources=point.resources,
            limits=point.limits,
            request={
                **keys.request(point.spec, *place_of(point.resources)),
                **({"dense_infeasible": point.dense_infeasible} if point.dense_infeasible else {}),
                **({"no_rival": point.no_rival} if point.no_rival else {}),
                **({"tuning": tuning[spec_id]} if spec_id in tuning else {}),
            },
        )


def point_key(keys: Keys, point: Point, known: dict[str, str]) -> str:
    """The trial key of a grid's point.

    Args:
        known: the keys of the trials before it by spec_id, that from which it starts among them; this one's is added.
    """
    if point.start and point.start.spec_id not in known:
        raise UserError(f"trial {point.spec.spec_id} starts from {point.start.spec_id}, which has no key")
    key = keys.key(point.spec, *place_of(point.resources), known[point.start.spec_id] if point.start else None)
    known[point.spec.spec_id] = key
    return key


def place_of(resources: dict[str, Any]) -> tuple[int, str]:
    """Threads and device that the resources of a trial give it."""
    return int(resources.get("cpus", 1)), "cuda" if resources.get("gpus", 0) else "cpu"


def _once(points: list[Point]) -> list[Point]:
    first: dict[str, Point] = {}
    for point in points:
        first.setdefault(point.spec.spec_id, point)
    return list(first.values())


def _tuning(every: list[Point]) -> dict[str, dict[str, Any]]:
    """What ``select`` makes of each trial, by spec_id; nothing for a trial that no selection concerns.

    ``parts`` are its parts in selections, ``alone`` whether the grid also names it outside of any, and ``twin`` and ``rival`` the selections
    whose winners are its partners. The trial's spec and key know nothing of this: without ``select`` it is the same trial.
    """
    found: dict[str, dict[str, Any]] = {}
    for point in every:
        if point.selection is None and point.twin_selection is None and point.rival_selection is None:
            continue
        one = found.setdefault(point.spec.spec_id, {"parts": [], "alone": False, "twin": None, "rival": None})
        part = point.selection.to_json() if point.selection else None
        if part is not None and part not in one["parts"]:
            one["parts"].append(part)
        one["twin"] = one["twin"] or point.twin_selection
        one["rival"] = one["rival"] or point.rival_selection
    for point in every if found else ():
        if point.selection is None and not point.added and point.spec.spec_id in found:
            found[point.spec.spec_id]["alone"] = True
    return found


def _with_company(kept: list[Point], points: list[Point]) -> list[Point]:
    wanted, found = set[str](), kept
    by_id = {p.spec.spec_id: p for p in points}
    while found:  # what one starts from may start from another
        wanted |= {p.spec.spec_id for p in found}
        others = {other.spec_id for p in found for other in (p.twin, p.start, p.rival) if other is not None}
        found = [by_id[spec_id] for spec_id in others - wanted if spec_id in by_id]
    partners = {name for p in kept for name in (p.twin_selection, p.rival_selection) if name}
    return [p for p in points if p.spec.spec_id in wanted or (p.selection and p.selection.id in partners)]
