"""``plan``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparsefleet.cli.grids import loaded_grid, only_option, set_option
from sparsefleet.cli.session import Session, json_option, plugin_option, setting_option, verb
from sparsefleet.cli.talk import data, emit, say

if TYPE_CHECKING:
    from sparsefleet.grid.model import Grid
    from sparsefleet.registry import Catalog


@verb(
    "plan",
    "plan quickstart",
    "plan my.yaml --set train.epochs=2",
    "plan my.yaml --json",
    short="What submitting would do, and how long it takes.",
)
@click.argument("grid")
@set_option
@only_option
@setting_option("data")
@plugin_option
@json_option
def plan(session: Session, grid: str, set_: Sequence[str], only: Sequence[str], as_json: bool) -> None:
    """What submitting a grid would do: trials, twins, control arms, what is skipped and why, what is finished already, and how long it takes.

    GRID is a YAML file or the name of a grid that ships with sparsefleet. Ends with 2 if a data set is not there, and says how to get it.
    """
    from sparsefleet.registry import catalog

    session.settings  # noqa: B018  exports the cache's place
    plugins = catalog()
    show_plan(session, loaded_grid(grid, None, set_, plugins), plugins, only, as_json)


def show_plan(session: Session, grid: Grid, plugins: Catalog, only: Sequence[str], as_json: bool, *, follow: str | None = None) -> None:
    """The plan, with what this home's ledger knows of the grid; ``follow`` is the command to run next in place of ``submit grid``."""
    from sparsefleet.errors import UserError
    from sparsefleet.fleet.enqueue import point_key
    from sparsefleet.grid.plan import plan as plan_of
    from sparsefleet.ledger import read_ledger
    from sparsefleet.trial.identity import Keys

    try:
        ledger = read_ledger(session.home)
    except UserError:  # nothing has been submitted here
        ledger = None
    keys = Keys(plugins, Path(session.get("data")))
    known: dict[str, str] = {}
    found = plan_of(grid, plugins, ledger, key_of=lambda point: point_key(keys, point, known))
    fitting = _fitting(grid, plugins, only, session.get("max_trials"))
    if as_json:
        body: dict[str, Any] = {**found.to_json(), **({} if fitting is None else {"only": fitting})}
        emit(body)
        _refuse_missing_data(grid, plugins, only, Path(session.get("data")))
        return
    lines = found.lines()
    data(line for line in lines if not line.startswith("next:"))
    if fitting is not None:
        data(f"  only   {fitting:,}  fit --only {' --only '.join(only)}; their twins run too")
    _refuse_missing_data(grid, plugins, only, Path(session.get("data")))
    for line in lines:
        if line.startswith("next:"):
            say(f"next: sparsefleet {follow}" if follow else line + session.plugin_flags)


def _refuse_missing_data(grid: Grid, plugins: Catalog, only: Sequence[str], root: Path) -> None:
    """Refuses a grid whose data sets are not there: each is named once, with how to get it. Above 1,000 points only ``submit`` looks."""
    from sparsefleet.cli.labels import matches_any
    from sparsefleet.errors import UserError
    from sparsefleet.grid.counting import count_points
    from sparsefleet.grid.expand import expand
    from sparsefleet.grid.plan import EXPANDED_UP_TO
    from sparsefleet.trial.identity import data_digest, data_of

    if count_points(grid) > EXPANDED_UP_TO:
        return
    kept = (p.spec for p in expand(grid, plugins) if matches_any(only, p.spec.to_json(), p.arm, p.spec.spec_id))
    readers = {f"{family} {ref.model_dump_json()}": (family, ref) for spec in kept for _, family, ref in data_of(spec, plugins)}
    missing: list[UserError] = []
    for family, ref in readers.values():
        try:
            data_digest(ref, plugins, root, family)
        except UserError as error:
            missing.append(error)
    if missing:
        what, fix = ("; ".join(text for error in missing if (text := getattr(error, name))) for name in ("what", "fix"))
        raise UserError(what, fix=fix or None)


def _fitting(grid: Grid, plugins: Catalog, only: Sequence[str], most: int) -> int | None:
    if not only:
        return None
    from sparsefleet.cli.labels import matches_any
    from sparsefleet.grid.expand import expand
    from sparsefleet.grid.plan import refuse_too_many

    refuse_too_many(grid, most)
    return sum(matches_any(only, p.spec.to_json(), p.arm, p.spec.spec_id) for p in expand(grid, plugins))
