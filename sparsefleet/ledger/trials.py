"""Reading trials: rows of the tables into TrialRow, with the states that are true now."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sparsefleet.errors import IntegrityError
from sparsefleet.ledger.lock import is_held
from sparsefleet.ledger.rows import ACTIVE, TrialRow

_COLUMNS = """s.sweep, s.ordinal, s.key, s.arm, s.twin_key, s.rival_key, s.depends_on, s.resources, s.limits, s.request,
    t.spec_id, t.spec, t.state, t.attempt, t.owner, t.node, t.reason, t.started, t.ended"""


def dump(value: Any) -> str:
    """Compact JSON; refuses NaN."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def sha256(text: str) -> str:
    """Of the UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def load_record(key: str, text: str, digest: str) -> dict[str, Any]:
    """The record behind its digest.

    Raises:
        IntegrityError: the text is not what was committed.
    """
    if sha256(text) != digest:
        raise IntegrityError(
            f"the record of trial {key[:12]} does not match its digest", fix="resume with --only failed to run the trial again"
        )
    record: dict[str, Any] = json.loads(text)
    return record


def true_state(state: str, owner: str | None, *, cancelled: bool, alive: Callable[[str], bool]) -> str:
    """The state, given that drivers die and sweeps are cancelled without touching rows that other sweeps share."""
    if state in ACTIVE and not (owner and alive(owner)):
        state = "PENDING"
    return "CANCELLED" if state == "PENDING" and cancelled else state


class Truth:
    """Which drivers live and which sweeps are cancelled, looked up once each."""

    def __init__(self, db: sqlite3.Connection, home: Path) -> None:
        self._home = home
        self._held: dict[str, bool] = {}
        self._cancelled = {row["sweep"] for row in db.execute("SELECT sweep FROM sweeps WHERE state='CANCELLED'")}

    def alive(self, sweep: str) -> bool:
        """True if a driver holds the sweep."""
        if sweep not in self._held:
            self._held[sweep] = is_held(self._home, sweep)
        return self._held[sweep]

    def state(self, sweep: str, state: str, owner: str | None) -> str:
        """What is true of a trial as ``sweep`` sees it."""
        return true_state(state, owner, cancelled=sweep in self._cancelled, alive=self.alive)


def read(db: sqlite3.Connection, where: str, values: Sequence[Any], *, with_record: bool, truth: Truth) -> Iterator[TrialRow]:
    """Rows of ``sweep_trials s`` joined with ``trials t``."""
    record = "t.record, t.record_sha256" if with_record else "NULL AS record, NULL AS record_sha256"
    sql = f"SELECT {_COLUMNS}, {record} FROM sweep_trials s JOIN trials t ON t.key = s.key WHERE {where}"
    for row in db.execute(sql, values):
        yield TrialRow(
            **{name: row[name] for name in ("ordinal", "key", "spec_id", "arm", "twin_key", "rival_key", "depends_on")},
            **{name: json.loads(row[name]) for name in ("spec", "resources", "limits", "request")},
            **{name: row[name] for name in ("attempt", "node", "reason", "started", "ended")},
            state=truth.state(row["sweep"], row["state"], row["owner"]),
            record=load_record(row["key"], row["record"], row["record_sha256"]) if row["record"] else None,
            attempts=attempts(db, row["key"]) if row["attempt"] else [],
        )


def attempts(db: sqlite3.Connection, key: str) -> list[dict[str, Any]]:
    """All attempts of a trial, oldest first."""
    rows = db.execute('SELECT n, sweep, node, started, ended, "end", reason, t_s FROM attempts WHERE key=? ORDER BY n', (key,))
    return [dict(row) for row in rows]
