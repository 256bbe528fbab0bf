"""``compare``, and the lines that end a sweep."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from sparsefleet.cli.session import Session, json_option, setting_option, verb
from sparsefleet.cli.sweeps import chosen, figures, following, is_measured, reading, sweep_argument
from sparsefleet.cli.talk import data, emit, next_command, say
from sparsefleet.cli.trustworthy import require_option, require_trustworthy

if TYPE_CHECKING:
    from sparsefleet.ledger.rows import SweepRow


@verb(
    "compare",
    "compare",
    "compare quickstart-1a2b --by density",
    "compare quickstart-1a2b --theory --require-trustworthy",
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
@click.option(
    "--margin",
    type=click.FloatRange(min=0),
    metavar="X",
    help="How much worse than dense still counts as held; default 0.005, half a point of accuracy. A regression has no default.",
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option("--timings", "every", is_flag=True, help="A line for each timing: op, batch size, dense and sparse time, verdict.")
@click.option("--theory", is_flag=True, help="Add a table: counted and possible speed-ups beside the measured ones.")
@click.option("--allow-cross-machine", "mixed", is_flag=True, help="Show timings of several machines in one table, and say so.")
@require_option
@click.option(
    "--from", "source", type=click.Choice(["ledger", "mlflow"]), default="ledger", show_default=True, help="Where to read the trials."
)
@setting_option("mlflow_uri")
@json_option
def compare(session: Session, sweep: str | None, by: Sequence[str], metric: str, source: str, as_json: bool, **flags: Any) -> None:
    """The table: every method against its dense twin, seeds folded into means with intervals.

    SWEEP may be a prefix of its id; without it the newest sweep is shown. What its words mean: docs/numbers.md.
    """
    from sparsefleet.errors import UserError

    if flags["as_csv"] and as_json:
        raise UserError("--csv and --json exclude each other")
    if flags["margin"] is not None and not math.isfinite(flags["margin"]):
        raise UserError(f"--margin {flags['margin']} is no number", fix="e.g. --margin 0.01")
    by = [_COLUMNS.get(name, name) for part in by for name in part.split(",") if name]
    with _uncollected():
        rows, row = table_rows(session, sweep, Source(source, flags["mixed"], flags["margin"]), by, metric)
    if as_json:
        emit({"sweep": row.sweep if row else sweep, "rows": rows})
    elif flags["as_csv"]:
        from sparsefleet.report.csv import to_csv

        click.echo(to_csv(rows), nl=False)
    else:
        show_table(rows, by, metric, theory=flags["theory"], every=flags["every"])
        if row and figures(row)["done"] < figures(row)["total"]:
            say(f"{row.sweep} is {row.state}: {figures(row)['done']} of {figures(row)['total']} trials have ended")
            next_command(f"resume {row.sweep}" if following(row).startswith("compare") else following(row))
        else:
            next_command("ui")
    if flags["require"]:
        asked = is_measured(row) if row else any(one["timings"] for one in rows)
        require_trustworthy(rows, row.sweep if row else sweep or "SWEEP", measured=asked)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without looking for cycles: ten thousand trials are a million objects that stay until the process ends; to go through them again and
    again, and once more at its end, is a seventh of its time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was:
            gc.enable()


_COLUMNS = {"density": "density_asked", "params": "params", "speed": "vs_dense_width", "speedup": "vs_dense_width", "peak": "peak_bytes"}


@dataclass(frozen=True)
class Source:
    """Where the trials are read, whether timings of several machines may stand in one table, and by which margin accuracy is judged."""

    name: str = "ledger"
    mixed: bool = False
    margin: float | None = None


def table_rows(
    session: Session, sweep: str | None, source: Source, by: Sequence[str] = (), metric: str = "accuracy"
) -> tuple[list[dict[str, Any]], SweepRow | None]:
    """The comparison's rows and the sweep that they show (None where only MLflow knows it)."""
    from sparsefleet.report.compare import READS, rows
    from sparsefleet.report.machines import Machines
    from sparsefleet.report.timing import Timings

    if source.name == "ledger":
        ledger = reading(session)
        row = chosen(ledger, sweep)
        measured = ledger.timings(row.sweep)
        machines = Machines(measured, ledger.samples, mixed=source.mixed)
        read = ledger.trials(row.sweep, with_record=READS, with_attempts=False)
        return rows(read, Timings(measured, machines), by, metric, margin=source.margin), row
    from sparsefleet.errors import UserError
    from sparsefleet.track.read import raw_samples, rows as tracked
    from sparsefleet.track.server import home_id

    if sweep is None:
        sweep = chosen(reading(session), None).sweep
    uri, home = session.get("mlflow_uri"), home_id(session.home) if (session.home / "tracking-id").exists() else None
    trials, measured = tracked(sweep, uri, home)
    if not trials:
        raise UserError(f"MLflow holds no sweep {sweep!r}", cause=f"tracking URI {uri}", fix="sparsefleet status")
    machines = Machines(measured, lambda ref: raw_samples(sweep, uri, ref, home), mixed=source.mixed)
    return rows(trials, Timings(measured, machines), by, metric, margin=source.margin), None


def show_table(
    rows: Sequence[dict[str, Any]], by: Sequence[str] = (), metric: str = "accuracy", *, theory: bool = False, every: bool = False
) -> None:
    """The table, what it can claim, and where the break-even lies, to stdout."""
    from sparsefleet.report.breakeven import sentences
    from sparsefleet.report.claims import claim
    from sparsefleet.report.table import render

    data(render(rows, by, metric, theory=theory, every=every))
    if rows:
        data(claim(rows))
        data(sentences(rows))
