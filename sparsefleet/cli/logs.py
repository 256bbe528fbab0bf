"""``logs``."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sparsefleet.cli.session import Session, json_option, verb
from sparsefleet.cli.sweeps import chosen, reading
from sparsefleet.cli.talk import data, emit, say

if TYPE_CHECKING:
    from sparsefleet.ledger.ledger import Ledger
    from sparsefleet.ledger.rows import TrialRow


@verb(
    "logs", "logs", "logs quickstart-1a2b --follow", "logs 3f9a12bc04de", "logs 3f9a12bc04de --json", short="A driver's or a trial's log."
)
@click.argument("what", required=False, metavar="[SWEEP|TRIAL]")
@click.option("--lines", "-n", type=click.IntRange(1), default=200, show_default=True, help="The last so many lines.")
@click.option("--attempt", type=click.IntRange(1), metavar="N", help="Of a trial: this attempt instead of the last one.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what is written, until its writer ends or Ctrl-C.")
@json_option
def logs(session: Session, what: str | None, lines: int, attempt: int | None, follow: bool, as_json: bool) -> None:
    """The log of a sweep's driver, or of one trial: its attempts, its reason, its output.

    Without an argument the newest sweep's. Ids may be shortened. --json tells of a trial what happened to it, event by event.
    """
    from sparsefleet.errors import UserError

    ledger = reading(session)
    try:
        sweep = chosen(ledger, what)
    except UserError:
        if what is None:
            raise
        if as_json:
            _events(session, ledger, what, lines, attempt)
            return
        _trial(session, ledger, what, lines, attempt, follow)
        return
    if as_json:
        raise UserError("--json tells what happened to one trial", fix=f"sparsefleet status {sweep.sweep} --json, or the id of a trial")
    path = session.home / "logs" / f"{sweep.sweep}.log"
    if not path.is_file():
        say("no log: it was driven in the foreground; each trial has a log of its own")
        say(f"next: sparsefleet status {sweep.sweep} --trials")
        return
    with path.open(encoding="utf-8", errors="backslashreplace") as file:
        data([line.rstrip("\n") for line in deque(file, lines)])
    if follow:
        _follow(path, session.home, sweep.sweep)


def _events(session: Session, ledger: Ledger, what: str, lines: int, attempt: int | None) -> None:
    from sparsefleet.fleet.history import read_history

    trial = ledger.trial(what)
    told = [line for line in read_history(session.home, trial.key) if attempt in (None, line["attempt"])]
    emit({"key": trial.key, "spec_id": trial.spec_id, "state": trial.state, "events": told[-lines:]})


def _trial(session: Session, ledger: Ledger, what: str, lines: int, attempt: int | None, follow: bool) -> None:
    from sparsefleet.fleet.logs import follow_log, read_log

    trial = ledger.trial(what)
    for line in _story(trial):
        say(line)
    data(read_log(session.home, trial, attempt).splitlines()[-lines:])
    if follow:
        try:
            for piece in follow_log(session.home, ledger, trial.key):
                data(piece.rstrip("\n"))
        except KeyboardInterrupt:
            say("stopped following")


def _story(trial: TrialRow) -> Iterator[str]:
    from sparsefleet.cli.labels import trial_label

    yield f"{trial.spec_id} {trial_label(trial.spec)} ({trial.arm}): {trial.state}"
    for attempt in trial.attempts:
        took = f"{attempt['t_s']:.1f} s" if attempt.get("t_s") is not None else "some time"
        told = f"  attempt {attempt['n']} on {attempt['node']}: {attempt.get('end') or 'not ended'} after {took}"
        yield told + (f": {attempt['reason']}" if attempt.get("reason") else "")
    if trial.reason:
        yield from (f"  {line}" for line in trial.reason.splitlines())
    for warning in (trial.record or {}).get("warnings", []):
        yield f"  warning: {warning}"


def _follow(path: Path, home: Path, sweep: str) -> None:
    """Until the driver has ended, however it did."""
    from sparsefleet.ledger import is_held

    with path.open(encoding="utf-8", errors="backslashreplace") as file:
        file.seek(0, 2)
        try:
            while True:
                driven = is_held(home, sweep)  # asked before reading: what it wrote last comes along
                for line in file:
                    data(line.rstrip("\n"))
                if not driven:
                    return
                time.sleep(0.2)
        except KeyboardInterrupt:
            say("stopped following")
