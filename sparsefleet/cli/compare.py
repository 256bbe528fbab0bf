"""``compare``, and the lines that end a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from sparsefleet.cli.session import Session, json_option, setting_option, verb
from sparsefleet.cli.sweeps import chosen, figures, following, reading, sweep_argument
from sparsefleet.cli.talk import data, emit, next_command, say

if TYPE_CHECKING:
    from sparsefleet.ledger.rows import SweepRow


@verb(
    "compare",
    "compare",
    "compare quickstart-1a2b --by density",
    "compare quickstart-1a2b --json",
    "compare --csv > table.csv",
    short="The table: methods against dense twins.",
)
@sweep_argument
@click.option(
    "--by", multiple=True, metavar="COLUMN", help="Order by this column or key of the spec, e.g. density or train.epochs; repeatable."
)
@click.option(
    "--metric", default="accuracy", show_default=True, metavar="NAME", help="accuracy, test_loss, best_on_val, last_on_val or wall_s."
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option(
    "--from", "source", type=click.Choice(["ledger", "mlflow"]), default="ledger", show_default=True, help="Where to read the trials."
)
@setting_option("mlflow_uri")
@json_option
def compare(session: Session, sweep: str | None, by: Sequence[str], metric: str, as_csv: bool, source: str, as_json: bool) -> None:
    """The table: every method against its dense twin, seeds folded into means with intervals.

    SWEEP may be a prefix of its id; without it the newest sweep is shown.
    """
    from sparsefleet.errors import UserError

    if as_csv and as_json:
        raise UserError("--csv and --json exclude each other")
    by = [_COLUMNS.get(name, name) for part in by for name in part.split(",") if name]
    rows, row = table_rows(session, sweep, source, by, metric)
    if as_json:
        emit({"sweep": row.sweep if row else sweep, "rows": rows})
    elif as_csv:
        from sparsefleet.report.csv import to_csv

        click.echo(to_csv(rows), nl=False)
    else:
        show_table(rows, by, metric)
        if row and figures(row)["done"] < figures(row)["total"]:
            say(f"{row.sweep} is {row.state}: {figures(row)['done']} of {figures(row)['total']} trials have ended")
            next_command(f"resume {row.sweep}" if following(row).startswith("compare") else following(row))
        else:
            next_command("ui")


_COLUMNS = {"density": "density_asked", "params": "params", "speed": "vs_dense_width", "speedup": "vs_dense_width"}


def table_rows(
    session: Session, sweep: str | None, source: str, by: Sequence[str] = (), metric: str = "accuracy"
) -> tuple[list[dict[str, Any]], SweepRow | None]:
    """The comparison's rows and the sweep that they show (None where only MLflow knows it)."""
    from sparsefleet.report.compare import rows

    if source == "ledger":
        ledger = reading(session)
        row = chosen(ledger, sweep)
        return rows(ledger.trials(row.sweep), ledger.timings(row.sweep), by, metric), row
    from sparsefleet.errors import UserError
    from sparsefleet.track.read import rows as tracked
    from sparsefleet.track.server import home_id

    if sweep is None:
        sweep = chosen(reading(session), None).sweep
    trials, timings = tracked(sweep, session.get("mlflow_uri"), home_id(session.home) if (session.home / "tracking-id").exists() else None)
    if not trials:
        raise UserError(f"MLflow holds no sweep {sweep!r}", cause=f"tracking URI {session.get('mlflow_uri')}", fix="sparsefleet status")
    return rows(trials, timings, by, metric), None


def show_table(rows: Sequence[dict[str, Any]], by: Sequence[str] = (), metric: str = "accuracy") -> None:
    """The table, what it can claim, and where the break-even lies, to stdout."""
    from sparsefleet.report.breakeven import sentences
    from sparsefleet.report.claims import claim
    from sparsefleet.report.table import render

    data(render(rows, by, metric))
    if rows:
        data(claim(rows))
        data(sentences(rows))
