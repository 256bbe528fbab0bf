"""``resume``."""

from __future__ import annotations

import click

from sparsefleet.cli.drive import Drive, drive
from sparsefleet.cli.session import Session, json_option, leave, setting_option, verb
from sparsefleet.cli.sweeps import chosen, reading
from sparsefleet.cli.trustworthy import require_option


@verb(
    "resume",
    "resume quickstart-1a2b",
    "resume quickstart-1a2b --failed",
    "resume quickstart-1a2b --remeasure",
    "resume quickstart-1a2b --detach",
    short="Go on with a sweep.",
)
@click.argument("sweep")
@click.option("--failed", "only_failed", is_flag=True, help="Try the failed trials once more too.")
@click.option("--remeasure", is_flag=True, help="Take the timings that were not trusted once more too.")
@click.option("--detach/--wait", default=False, help="Return at once and go on in the background; default: wait.")
@require_option
@setting_option("max_parallel", metavar="N")
@setting_option("data")
@setting_option("mlflow_uri")
@json_option
def resume(session: Session, sweep: str, **flags: bool) -> None:
    """Go on with a sweep that was interrupted or cancelled; nothing that has ended runs again.

    SWEEP may be a prefix of its id. Ends as submit does.
    """
    row = chosen(reading(session), sweep)
    leave(drive(session, Drive(row.sweep, **flags)))
