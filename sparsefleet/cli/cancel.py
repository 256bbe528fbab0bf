"""``cancel``."""

from __future__ import annotations

import click

from sparsefleet.cli.session import Session, verb
from sparsefleet.cli.sweeps import chosen, reading
from sparsefleet.cli.talk import next_command, say


@verb("cancel", "cancel quickstart-1a2b", short="Stop a sweep; finished trials stay.")
@click.argument("sweep")
def cancel(session: Session, sweep: str) -> None:
    """Stop a sweep: running trials end, finished ones stay; resume takes it up again.

    SWEEP may be a prefix of its id.
    """
    from sparsefleet.fleet.driver import cancel as stop

    row = chosen(reading(session), sweep)
    if stop(session.made_home(), row.sweep):
        say(f"{row.sweep}: its driver stops within some seconds")
    else:
        say(f"{row.sweep}: nothing was running; what waits is cancelled")
    next_command(f"resume {row.sweep}")
