"""Reading sweeps, with the states that are true now."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from sparsefleet.errors import UserError
from sparsefleet.ledger.lock import is_held
from sparsefleet.ledger.rows import LIVE_SWEEP, SweepRow
from sparsefleet.ledger.trials import Truth, true_state

_LISTED = 8
_NEWEST_FIRST = "SELECT * FROM sweeps ORDER BY created DESC, sweep"


def all_sweeps(db: sqlite3.Connection, home: Path) -> list[SweepRow]:
    """Newest first."""
    return [_read(db, home, row) for row in db.execute(_NEWEST_FIRST).fetchall()]


def grids_of(db: sqlite3.Connection, key: str) -> list[str]:
    """The names of the sweeps that show this trial, or ran it once."""
    asked = (
        "SELECT DISTINCT name FROM sweeps WHERE sweep IN (SELECT sweep FROM sweep_trials WHERE key=?1"
        " UNION SELECT sweep FROM attempts WHERE key=?1) ORDER BY name"
    )
    return [row["name"] for row in db.execute(asked, (key,))]


def find(db: sqlite3.Connection, home: Path, prefix: str) -> SweepRow:
    """The sweep with this id, or the only one whose id begins so; nothing at all begins none.

    Raises:
        UserError: there is none or more than one; the message lists candidates.
    """
    known = db.execute(_NEWEST_FIRST).fetchall()
    matching = [row for row in known if prefix and row["sweep"].startswith(prefix)]
    exact = [row for row in matching if row["sweep"] == prefix]
    if len(exact or matching) == 1:
        return _read(db, home, (exact or matching)[0])
    names = ", ".join(row["sweep"] for row in (matching or known)[:_LISTED]) or "none yet"
    what = f"{len(matching)} sweeps begin with {prefix!r}" if matching else f"unknown sweep {prefix!r}"
    raise UserError(what, fix=f"sweeps: {names}")


def _read(db: sqlite3.Connection, home: Path, row: sqlite3.Row) -> SweepRow:
    sweep, state = row["sweep"], row["state"]
    if state in LIVE_SWEEP and not is_held(home, sweep):
        state = "INTERRUPTED"
    counts = {"total": 0, "cached": 0}
    truth = Truth(db, home)
    grouped = db.execute(
        "SELECT t.state, t.owner, count(*) AS n, sum(s.cached) AS cached FROM sweep_trials s JOIN trials t ON t.key = s.key"
        " WHERE s.sweep=? GROUP BY t.state, t.owner",
        (sweep,),
    )
    for group in grouped:
        true = true_state(group["state"], group["owner"], cancelled=state == "CANCELLED", alive=truth.alive)
        counts[true] = counts.get(true, 0) + group["n"]
        counts["total"] += group["n"]
        counts["cached"] += group["cached"]
    return SweepRow(
        sweep=sweep,
        name=row["name"],
        digest=row["digest"],
        grid_text=row["grid_text"],
        state=state,
        created=row["created"],
        ended=row["ended"],
        settings=json.loads(row["settings"]),
        counts=counts,
    )
