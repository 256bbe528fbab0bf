"""``status``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sparsefleet.cli.session import Session, json_option, verb
from sparsefleet.cli.sweeps import chosen, figures, following, progress_of, reading, status_json, sweep_argument
from sparsefleet.cli.talk import data, emit, next_command

if TYPE_CHECKING:
    from pathlib import Path

    from sparsefleet.ledger.rows import SweepRow, TrialRow


@verb("status", "status", "status quickstart-1a2b --trials", "status --json", short="How the sweeps stand.")
@sweep_argument
@click.option("--trials", "with_trials", is_flag=True, help="List the trials of the sweep too.")
@json_option
def status(session: Session, sweep: str | None, with_trials: bool, as_json: bool) -> None:
    """How the sweeps stand; SWEEP may be a prefix of its id."""
    ledger = reading(session)
    sweeps = [ledger.sweep(sweep)] if sweep is not None else ledger.sweeps()
    if with_trials and not sweep:
        sweeps = [chosen(ledger, None)]
    trials = list(ledger.trials(sweeps[0].sweep, with_record=False, with_attempts=False)) if with_trials else []
    if as_json:
        body: dict[str, Any] = {"sweeps": [status_json(row, session.home) for row in sweeps]}
        if with_trials:
            body["trials"] = [_trial_json(t) for t in trials]
        emit(body)
        return
    data(_sweep_lines(sweeps) if sweeps else "no sweeps")
    for row in sweeps:
        data(_live_lines(row, session.home))
    if with_trials:
        data(["", *_trial_lines(trials)])
    if sweeps:
        next_command(following(max(sweeps, key=lambda row: row.created)))


def _sweep_lines(sweeps: list[SweepRow]) -> list[str]:
    from sparsefleet.report.layout import Column, text_lines

    told = [figures(row) for row in sweeps]
    numbers = ("done", "total", "ok", "diverged", "failed", "running", "waiting", "cancelled")
    columns = [Column("sweep", [row.sweep for row in sweeps]), Column("state", [row.state for row in sweeps])]
    columns += [Column(name, [str(f[name]) for f in told], right=True) for name in numbers]
    return text_lines([*columns, Column("created (UTC)", [row.created[:19].replace("T", " ") for row in sweeps])])


def _live_lines(row: SweepRow, home: Path) -> list[str]:
    """What a sweep that is being driven does now: how long it still takes, what runs where, and why the rest waits; nothing of another."""
    from sparsefleet.cli.progress import View

    live = progress_of(row, home)
    if live is None:
        return []
    view = View(row.sweep, state=row.state)
    view.count(figures(row), row.counts.get("cached", 0))
    view.take_json(live)
    view.running = live.get("running", {})
    return ["", f"{row.sweep}: {view.headline()}", *(f"  {line}" for line in (*view.running_lines(), *view.fleet_lines()))]


def _trial_lines(trials: list[TrialRow]) -> list[str]:
    from sparsefleet.cli.labels import trial_label
    from sparsefleet.report.layout import Column, text_lines

    return text_lines(
        [
            Column("trial", [t.spec_id for t in trials]),
            Column("state", [t.state for t in trials]),
            Column("attempt", [str(t.attempt) for t in trials], right=True),
            Column("arm", [t.arm for t in trials]),
            Column("what", [trial_label(t.spec) for t in trials]),
            Column("reason", [t.reason or "" for t in trials]),
        ]
    )


def _trial_json(trial: TrialRow) -> dict[str, Any]:
    names = ("spec_id", "key", "arm", "twin_key", "state", "attempt", "node", "reason", "started", "ended")
    return {name: getattr(trial, name) for name in names}
