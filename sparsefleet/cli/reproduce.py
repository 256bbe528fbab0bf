"""``reproduce``: a published table, ours beside theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from sparsefleet.cli.grids import only_option, set_option
from sparsefleet.cli.session import Session, json_option, leave, setting_option, verb
from sparsefleet.cli.talk import data, emit, next_command, say

if TYPE_CHECKING:
    from sparsefleet.grid.model import Grid
    from sparsefleet.ledger.rows import SweepRow
    from sparsefleet.registry import Catalog
    from sparsefleet.report.reproduction import Reproduction


@verb(
    "reproduce",
    "reproduce",
    "reproduce lenet-300-100",
    "reproduce lenet-300-100 --only method=set,density=0.1 --dry-run",
    "reproduce lenet-300-100 --from lenet-300-100-1a2b --json",
    short="A published table: ours beside theirs.",
)
@click.argument("name", required=False)
@click.option("--from", "source", metavar="SWEEP", help="Judge the trials of this sweep (or a prefix of its id) and run nothing.")
@click.option("--dry-run", is_flag=True, help="Print the rows and the plan, and stop.")
@set_option
@only_option
@setting_option("max_parallel", metavar="N")
@setting_option("max_trials", metavar="N")
@setting_option("data")
@setting_option("address")
@setting_option("mlflow_uri")
@json_option
def reproduce(
    session: Session, name: str | None, source: str | None, dry_run: bool, set_: Sequence[str], only: Sequence[str], as_json: bool
) -> None:
    """Run a published table's grid and print ours beside theirs: PASS, FAIL, or why a row says nothing. Without NAME, list the tables.

    Runs like submit grid: resumed where it stopped, and nothing that is finished is run again. A row whose training was cut short
    (epochs, seeds, data set, batch size, validation share) is UNDER-TRAINED and one with other settings ALTERED: neither is a reproduction.

    Ends with 0 if every row passed, with 6 if rows are under-trained, altered or not run, with 5 if all ran as published and some failed, or
    if trials failed.
    """
    from sparsefleet.errors import UserError
    from sparsefleet.registry import catalog
    from sparsefleet.report.reproduction import load_reproduction

    session.settings  # noqa: B018  exports the cache's place
    if name is None:
        _list(as_json)
        return
    plugins, wanted = catalog(), load_reproduction(name)
    if source and (set_ or only or dry_run):
        raise UserError("--from looks at trials that are there; --set, --only and --dry-run are for trials to run")
    if source:
        from sparsefleet.cli.sweeps import chosen, reading

        _show(session, wanted, plugins, chosen(reading(session), source), as_json)
        return
    grid = wanted.loaded_grid(plugins, set_)
    if dry_run:
        _plan(session, wanted, name, grid, plugins, only, as_json)
        return
    _refuse_without_gpu(wanted, name, session)
    _show(session, wanted, plugins, _run(session, grid, plugins, only), as_json, ran=True)


def _run(session: Session, grid: Grid, plugins: Catalog, only: Sequence[str]) -> SweepRow:
    """The grid's sweep, run to its end."""
    from sparsefleet.cli.drive import Drive, foreground, has_ended
    from sparsefleet.cli.submit import enqueue_grid
    from sparsefleet.grid.plan import refuse_too_many
    from sparsefleet.ledger import read_ledger

    refuse_too_many(grid, session.get("max_trials"))
    sweep = enqueue_grid(session, grid, plugins, only)
    row = read_ledger(session.made_home()).sweep(sweep)
    return row if has_ended(row) else foreground(session, row, Drive(sweep))


def _show(session: Session, wanted: Reproduction, plugins: Catalog, row: SweepRow, as_json: bool, *, ran: bool = False) -> None:
    from sparsefleet.cli.sweeps import exit_code as sweep_code, reading
    from sparsefleet.grid.expand import expand
    from sparsefleet.report.reproducing import judge
    from sparsefleet.report.reproduction_table import exit_code, render, verdict

    recipe = ((point.arm, point.spec) for point in expand(wanted.loaded_grid(plugins), plugins))
    rows = judge(wanted, recipe, list(reading(session).trials(row.sweep)))
    if as_json:
        told = {"differs": list(wanted.differs), "verdict": verdict(rows), "exit_code": exit_code(rows)}
        emit({"reproduction": wanted.name, "source": wanted.source, "sweep": row.sweep, "rows": [one.to_json() for one in rows], **told})
    else:
        data(render(wanted, rows))
    code = sweep_code(row) if ran else 0
    next_command(f"resume {row.sweep}{' --failed' if code == 5 else ''}" if code else f"compare {row.sweep}")
    leave(code or exit_code(rows))


def _plan(session: Session, wanted: Reproduction, called: str, grid: Grid, plugins: Catalog, only: Sequence[str], as_json: bool) -> None:
    from sparsefleet.cli.plan import show_plan

    if not as_json:
        data([f"{wanted.name}: {wanted.title}", f"source: {wanted.source}", f"cost: {wanted.cost}"])
        data(
            [f"rows: {len(wanted.rows)}", *(["needs: a GPU"] if wanted.needs.gpu else []), *(f"differs: {text}" for text in wanted.differs)]
        )
    show_plan(session, grid, plugins, only, as_json, follow=f"reproduce {called}")


def _refuse_without_gpu(wanted: Reproduction, called: str, session: Session) -> None:
    """Refuses a table that would wait for a GPU for ever; a cluster elsewhere may have one."""
    from sparsefleet.errors import UserError

    if not wanted.needs.gpu or session.get("address") != "local":
        return
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            f"{wanted.name} needs a GPU and torch sees none here",
            cause=wanted.cost,
            fix=f"--address of a cluster that has one; sparsefleet reproduce {called} --dry-run shows the plan",
        )


def _list(as_json: bool) -> None:
    from sparsefleet.report.layout import Column, text_lines
    from sparsefleet.report.reproduction import load_reproduction, shipped_reproductions

    every = [load_reproduction(name) for name in shipped_reproductions()]
    if as_json:
        emit({"reproductions": [_entry(one) for one in every]})
        return
    columns = {
        "name": [one.name for one in every],
        "rows": [str(len(one.rows)) for one in every],
        "needs": ["GPU" if one.needs.gpu else "–" for one in every],
        "cost": [one.cost for one in every],
        "source": [one.source for one in every],
    }
    data(text_lines([Column(heading, cells, heading == "rows") for heading, cells in columns.items()]))
    say("a published table each; the rows and settings of one: sparsefleet reproduce NAME --dry-run")
    next_command(f"reproduce {every[0].name} --dry-run")


def _entry(one: Reproduction) -> dict[str, Any]:
    return {
        "name": one.name,
        "title": one.title,
        "source": one.source,
        "rows": len(one.rows),
        "needs_gpu": one.needs.gpu,
        "cost": one.cost,
        "differs": list(one.differs),
    }
