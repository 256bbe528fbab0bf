"""Timings per configuration, and their raw samples by digest."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from statistics import median
from typing import Any

from sparsefleet.errors import IntegrityError, UserError
from sparsefleet.ledger.clock import now
from sparsefleet.ledger.packed import dump
from sparsefleet.ledger.rows import TimingRow

_LOOKED_AT = 200
_SHARED_S, _PAUSE_S = 0.5, 900.0
"""Timings nearer than this were entered together; ones farther apart were taken by two drivers."""


def store_samples(db: sqlite3.Connection, body: bytes) -> str:
    """The sha256 under which the raw samples lie."""
    ref = hashlib.sha256(body).hexdigest()
    db.execute("INSERT OR IGNORE INTO samples VALUES (?,?)", (ref, body))
    return ref


def load_samples(db: sqlite3.Connection, ref: str) -> bytes:
    """The raw samples.

    Raises:
        UserError: there are none under this name.
        IntegrityError: they are not what was stored.
    """
    row = db.execute("SELECT body FROM samples WHERE ref=?", (ref,)).fetchone()
    if row is None:
        raise UserError(f"there are no samples {ref[:12]}")
    body = bytes(row["body"])
    if hashlib.sha256(body).hexdigest() != ref:
        raise IntegrityError(f"the samples {ref[:12]} do not match their digest")
    return body


def store(db: sqlite3.Connection, sweep: str, row: TimingRow) -> None:
    """Enter or replace the sweep's timing of one configuration."""
    values = (sweep, row.config_key, dump(row.keys), row.state, dump(row.timings), row.samples_ref, row.reason, row.created or now())
    db.execute("INSERT OR REPLACE INTO timings VALUES (?,?,?,?,?,?,?,?)", values)


def of_sweep(db: sqlite3.Connection, sweep: str) -> list[TimingRow]:
    """All timings of the sweep, in the order in which they were taken."""
    return [_row(row) for row in db.execute("SELECT * FROM timings WHERE sweep=? ORDER BY created, config_key", (sweep,))]


def seconds_each(db: sqlite3.Connection) -> float | None:
    """The median time between two timings that one sweep took one after the other; None where there are no such two."""
    rows = db.execute("SELECT sweep, created FROM timings ORDER BY created DESC LIMIT ?", (_LOOKED_AT,)).fetchall()
    taken: dict[str, list[float]] = {}
    for row in rows:
        taken.setdefault(row["sweep"], []).append(datetime.fromisoformat(row["created"]).timestamp())
    gaps = [later - earlier for times in taken.values() for later, earlier in pairwise(times) if _SHARED_S < later - earlier < _PAUSE_S]
    return median(gaps) if gaps else None


def of_config(db: sqlite3.Connection, config_key: str, states: Sequence[str]) -> TimingRow | None:
    """The newest timing of this configuration in any sweep that is in one of ``states``."""
    for row in db.execute("SELECT * FROM timings WHERE config_key=? ORDER BY created DESC", (config_key,)):
        if row["state"] in states:
            return _row(row)
    return None


def _row(row: sqlite3.Row) -> TimingRow:
    timings: list[dict[str, Any]] = json.loads(row["timings"])
    return TimingRow(row["config_key"], json.loads(row["keys"]), row["state"], timings, row["samples_ref"], row["reason"], row["created"])
