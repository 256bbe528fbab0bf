"""``submit grid``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sparsefleet.cli.grids import loaded_grid, only_option, set_option
from sparsefleet.cli.session import Session, json_option, leave, plugin_option, setting_option, verb
from sparsefleet.cli.trustworthy import require_option

if TYPE_CHECKING:
    from sparsefleet.grid.expand import Point
    from sparsefleet.grid.model import Grid
    from sparsefleet.registry import Catalog


@click.group(epilog="\b\nExample:\n  sparsefleet submit grid quickstart")
def submit() -> None:
    """Submit a grid."""


@verb(
    "grid",
    "submit grid quickstart",
    "submit grid my.yaml --dry-run",
    "submit grid my.yaml --set train.epochs=2 --name short --detach",
    "submit grid my.yaml --only method=rigl,density=0.1",
    short="Run a grid: twins, control arms, table.",
)
@click.argument("grid")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("--name", metavar="NAME", help="Call the sweep NAME-DIGEST instead of by the grid's name.")
@set_option
@only_option
@click.option("--detach/--wait", default=False, help="Return at once and go on in the background; default: wait.")
@require_option
@setting_option("max_parallel", metavar="N")
@setting_option("max_trials", metavar="N")
@setting_option("data")
@plugin_option
@setting_option("mlflow_uri")
@json_option
def grid(
    session: Session,
    grid: str,
    dry_run: bool,
    name: str | None,
    set_: Sequence[str],
    only: Sequence[str],
    **flags: bool,
) -> None:
    """Run a grid: every combination, its dense twins and control arms; then the table.

    GRID is a YAML file or the name of a grid that ships with sparsefleet. What has run before under the same code, data and device is not run
    again. Ends with 5 if trials failed.
    """
    from sparsefleet.cli.drive import Drive, drive
    from sparsefleet.cli.plan import show_plan
    from sparsefleet.grid.plan import refuse_too_many
    from sparsefleet.registry import catalog

    session.settings  # noqa: B018  exports the cache's place
    plugins = catalog()
    loaded = loaded_grid(grid, name, set_, plugins)
    if dry_run:
        show_plan(session, loaded, plugins, only, flags["as_json"])
        return
    refuse_too_many(loaded, session.get("max_trials"))
    sweep = enqueue_grid(session, loaded, plugins, only)
    leave(drive(session, Drive(sweep, flags["detach"], flags["as_json"], require=flags["require"])))


submit.add_command(grid)


def enqueue_grid(session: Session, loaded: Grid, plugins: Catalog, only: Sequence[str]) -> str:
    """Writes the grid's trials to the ledger; the sweep's id."""
    from sparsefleet.cli.labels import matches_any
    from sparsefleet.fleet.enqueue import enqueue

    def keep(point: Point) -> bool:
        return matches_any(only, point.spec.to_json(), point.arm, point.spec.spec_id)

    return enqueue(loaded, plugins, session.made_home(), Path(session.get("data")), keep=keep if only else None)
