"""Entering sweeps: what is asked for, beside what is already known of it. Inside a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from sparsefleet.crash_points import passing
from sparsefleet.errors import SweepLocked, UserError
from sparsefleet.ledger import outbox as mail, timings
from sparsefleet.ledger.clock import now
from sparsefleet.ledger.lock import is_held
from sparsefleet.ledger.packed import Altered, Texts, dump, spec_kind
from sparsefleet.ledger.rows import TERMINAL, SweepRow, SweepTrial


def enter(db: sqlite3.Connection, texts: Texts, home: Path, asked: SweepRow, trials: Sequence[SweepTrial]) -> None:
    """A sweep and its trials; see ``Ledger.create_sweep``.

    Args:
        asked: the sweep; of it the id, the name, the digest, the grid and the settings count.
    """
    sweep = asked.sweep
    known = db.execute("SELECT digest FROM sweeps WHERE sweep=?", (sweep,)).fetchone()
    if known and known["digest"] != asked.digest:
        cause = f"{known['digest'][:16]} is not {asked.digest[:16]}"
        raise UserError(f"sweep {sweep!r} exists with another digest", cause=cause, fix="give the grid another name")
    if known:
        before = {row["key"] for row in db.execute("SELECT key FROM sweep_trials WHERE sweep=?", (sweep,))}
        if before == {trial.key for trial in trials}:
            if not is_held(home, sweep):
                _ask_again(db, texts, asked, trials)
            return
        if is_held(home, sweep):
            raise SweepLocked(f"sweep {sweep!r} is being driven with other trials", fix=f"sparsefleet watch {sweep}")
        mail.note_places(db, texts, sweep)
        db.execute("DELETE FROM sweep_trials WHERE sweep=?", (sweep,))
        _keep_timings(db, home, sweep, {trial.key for trial in trials})
    db.execute(
        "INSERT INTO sweeps (sweep, name, digest, grid_text, state, created, settings) VALUES (?,?,?,?,'RUNNING',?,?)"
        " ON CONFLICT (sweep) DO UPDATE SET state='RUNNING', ended=NULL, grid_text=excluded.grid_text, settings=excluded.settings",
        (sweep, asked.name, asked.digest, asked.grid_text, now(), dump(asked.settings)),
    )
    mail.enqueue(db, "sweep", sweep, None, {"state": "RUNNING"})
    for trial in trials:
        _add(db, texts, sweep, trial)
        passing("enqueue-inside")


def _keep_timings(db: sqlite3.Connection, home: Path, sweep: str, keys: set[str]) -> None:
    """Timings took minutes each and are of their configurations: they stay, for those of their trials that are still asked for."""
    for config_key in timings.damaged(db, sweep):
        timings.set_aside(db, home, sweep, config_key)
    for timing in timings.of_sweep(db, sweep):
        left = [key for key in timing.keys if key in keys]
        if left != timing.keys:
            timings.store(db, sweep, replace(timing, keys=left))
            mail.enqueue(db, "timing", sweep, timing.config_key, {"config_key": timing.config_key})


def _ask_again(db: sqlite3.Connection, texts: Texts, asked: SweepRow, trials: Iterable[SweepTrial]) -> None:
    """The same trials as before, as they are asked for now; what of them was altered is put right."""
    db.execute("UPDATE sweeps SET grid_text=?, settings=? WHERE sweep=?", (asked.grid_text, dump(asked.settings), asked.sweep))
    stands = {
        row["key"]: tuple(row)
        for row in db.execute(
            "SELECT key, arm, twin_key, rival_key, depends_on, resources, limits, request FROM sweep_trials WHERE sweep=?", (asked.sweep,)
        )
    }
    for trial in trials:
        wanted = (trial.key, trial.arm, trial.twin_key, trial.rival_key, trial.depends_on, *_numbers(texts, trial))
        if stands[trial.key] != wanted:
            db.execute(
                "UPDATE sweep_trials SET arm=?2, twin_key=?3, rival_key=?4, depends_on=?5, resources=?6, limits=?7, request=?8"
                " WHERE key=?1 AND sweep=?9",
                (*wanted, asked.sweep),
            )
        _put_spec_right(db, texts, asked.sweep, trial)


def _numbers(texts: Texts, trial: SweepTrial) -> list[int]:
    return [texts.number(dump(value)) for value in (trial.resources, trial.limits, trial.request)]


def _put_spec_right(db: sqlite3.Connection, texts: Texts, sweep: str, trial: SweepTrial) -> None:
    """The spec of a trial that is known, if it cannot be read any more."""
    row = db.execute("SELECT spec FROM trials WHERE key=?", (trial.key,)).fetchone()
    try:
        texts.unpack(row["spec"])
    except Altered:
        db.execute("UPDATE trials SET spec=? WHERE key=?", (texts.pack(dump(trial.spec), spec_kind(sweep)), trial.key))


def _add(db: sqlite3.Connection, texts: Texts, sweep: str, trial: SweepTrial) -> None:
    row = db.execute("SELECT state, attempt FROM trials WHERE key=?", (trial.key,)).fetchone()
    if row is None:
        spec = texts.pack(dump(trial.spec), spec_kind(sweep))
        db.execute("INSERT INTO trials (key, spec_id, spec) VALUES (?,?,?)", (trial.key, trial.spec_id, spec))
    else:
        _put_spec_right(db, texts, sweep, trial)
    cached = row is not None and row["state"] in TERMINAL
    added = db.execute(
        "INSERT OR IGNORE INTO sweep_trials VALUES (?,?,?,?,?,?,?,?,?,?,?)",
        (
            sweep,
            trial.ordinal,
            trial.key,
            trial.arm,
            trial.twin_key,
            trial.rival_key,
            trial.depends_on,
            *_numbers(texts, trial),
            int(cached),
        ),
    )
    if cached and added.rowcount:
        mail.enqueue(db, "trial", sweep, trial.key, {"attempt": row["attempt"], "state": row["state"], "shared": True})
