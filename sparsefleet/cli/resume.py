"""``resume``."""

from __future__ import annotations

from pathlib import Path

import click

from sparsefleet.cli.drive import Drive, drive
from sparsefleet.cli.session import Session, json_option, leave, setting_option, verb
from sparsefleet.cli.sweeps import chosen, reading
from sparsefleet.cli.talk import say
from sparsefleet.cli.trustworthy import require_option


@verb(
    "resume",
    "resume quickstart-1a2b",
    "resume quickstart-1a2b --failed",
    "resume quickstart-1a2b --remeasure",
    "resume quickstart-1a2b --accept-new-code",
    "resume quickstart-1a2b --upload-again",
    "resume quickstart-1a2b --detach",
    short="Go on with a sweep.",
)
@click.argument("sweep")
@click.option("--failed", "only_failed", is_flag=True, help="Try the failed trials once more too.")
@click.option("--remeasure", is_flag=True, help="Take the timings that were not trusted once more too.")
@click.option(
    "--accept-new-code", is_flag=True, help="Where code, plugins or data changed since: new trials with those of now; old records stay."
)
@click.option(
    "--upload-again", is_flag=True, help="Send all of the sweep to MLflow once more, where that has lost it; what is there stays."
)
@click.option("--detach/--wait", default=False, help="Return at once and go on in the background; default: wait.")
@require_option
@setting_option("max_parallel", metavar="N")
@setting_option("data")
@setting_option("mlflow_uri")
@json_option
def resume(session: Session, sweep: str, accept_new_code: bool, upload_again: bool, **flags: bool) -> None:
    """Go on with a sweep that was interrupted or cancelled; nothing that has ended runs again.

    SWEEP may be a prefix of its id. Ends as submit does. If the code that the open trials depend on has changed, nothing is run: both versions
    are named, and --accept-new-code goes on with the installed one.
    """
    row = chosen(reading(session), sweep)
    if accept_new_code:
        from sparsefleet.fleet.renew import renew
        from sparsefleet.registry import catalog

        n_new, n = renew(row.sweep, catalog(), session.made_home(), Path(session.get("data")))
        say(f"{row.sweep}: {n_new} of {n} trials depend on what has changed and are new")
    if upload_again:
        from sparsefleet.ledger import SweepLock, open_ledger

        with open_ledger(session.made_home()) as ledger, SweepLock(session.home, row.sweep):
            say(f"{row.sweep}: {ledger.upload_again(row.sweep)} items are sent to MLflow again")
    leave(drive(session, Drive(row.sweep, **flags)))
