"""Timings per configuration, behind a digest of all that is said of one, and their raw samples by digest."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from sparsefleet.errors import IntegrityError, UserError
from sparsefleet.ledger import outbox as mail
from sparsefleet.ledger.clock import now
from sparsefleet.ledger.packed import dump, sha256
from sparsefleet.ledger.rows import TimingRow
from sparsefleet.ledger.store import QUARANTINE

_TOLD = ("sweep", "config_key", "keys", "state", "timings", "samples_ref", "reason", "created")
_COLUMNS = ", ".join(f"CAST({name} AS BLOB) AS {name}" for name in (*_TOLD, "sha256"))
"""As bytes: SQLite's own reader would stop at text that is no UTF-8 any more."""
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
    db.execute("INSERT OR REPLACE INTO timings VALUES (?,?,?,?,?,?,?,?,?)", (*values, sha256(dump(values))))


def enter(db: sqlite3.Connection, sweep: str, row: TimingRow) -> None:
    """Enter or replace the sweep's timing of one configuration, and tell the uploader: also of trials that it stood for and does no more."""
    same = _rows(db, "sweep=? AND config_key=?", sweep, row.config_key)
    stood_for = [key for one in same if _is_whole(one) for key in json.loads(one["keys"])]
    store(db, sweep, row)
    former = [key for key in stood_for if key not in row.keys]
    mail.enqueue(db, "timing", sweep, row.config_key, {"config_key": row.config_key, **({"former": former} if former else {})})


def of_sweep(db: sqlite3.Connection, sweep: str, config_key: str | None = None) -> list[TimingRow]:
    """All timings of the sweep, in the order in which they were taken; or the one of this configuration.

    Raises:
        IntegrityError: one is not what was entered.
    """
    only = () if config_key is None else (config_key,)
    return [_timing(row) for row in _rows(db, f"sweep=?{' AND config_key=?' if only else ''} ORDER BY created, config_key", sweep, *only)]


def damaged(db: sqlite3.Connection, sweep: str) -> dict[str, str]:
    """What is wrong with timings of the sweep, by configuration."""
    found = {}
    for row in _rows(db, "sweep=?", sweep):
        try:
            _timing(row)
        except IntegrityError as error:
            found[_text(row["config_key"])] = error.what
    return found


def set_aside(db: sqlite3.Connection, home: Path, sweep: str, config_key: str) -> Path | None:
    """Takes a timing away, so that it is measured again; where what is left of it lies now. Inside a transaction.

    The sweep has not ended any more.
    """
    for row in _rows(db, "sweep=?", sweep):
        if _text(row["config_key"]) == config_key:
            break
    else:
        return None
    folder = home / QUARANTINE
    folder.mkdir(exist_ok=True, mode=0o700)
    path = folder / f"timing-{sweep}-{hashlib.sha256(bytes(row['config_key'])).hexdigest()[:16]}.json"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(dump({name: _text(row[name]) for name in _TOLD}).encode())
    db.execute("DELETE FROM timings WHERE sweep=? AND CAST(config_key AS BLOB)=?", (sweep, bytes(row["config_key"])))
    db.execute("UPDATE sweeps SET state='INTERRUPTED' WHERE state IN ('DONE','FAILED') AND sweep=?", (sweep,))
    return path


def seconds_each(db: sqlite3.Connection) -> float | None:
    """The median time between two timings that one sweep took one after the other; None where there are no such two."""
    taken: dict[str, list[float]] = {}
    for row in _rows(db, "1 ORDER BY created DESC LIMIT ?", _LOOKED_AT):
        if _is_whole(row):
            taken.setdefault(_text(row["sweep"]), []).append(datetime.fromisoformat(_text(row["created"])).timestamp())
    gaps = [later - earlier for times in taken.values() for later, earlier in pairwise(times) if _SHARED_S < later - earlier < _PAUSE_S]
    return median(gaps) if gaps else None


def of_config(db: sqlite3.Connection, config_key: str, states: Sequence[str]) -> TimingRow | None:
    """The newest timing of this configuration in any sweep that is in one of ``states``; one that was altered is none."""
    for row in _rows(db, "config_key=? ORDER BY created DESC", config_key):
        if _text(row["state"]) in states and _is_whole(row):
            return _timing(row)
    return None


def _rows(db: sqlite3.Connection, where: str, *values: str | int) -> list[sqlite3.Row]:
    return db.execute(f"SELECT {_COLUMNS} FROM timings WHERE {where}", values).fetchall()


def _text(value: bytes | None) -> str:
    return bytes(value or b"").decode(errors="replace")


def _is_whole(row: sqlite3.Row) -> bool:
    """True if all that is said of the timing is what was entered."""
    told = [None if row[name] is None else _text(row[name]) for name in _TOLD]
    return sha256(dump(told)) == _text(row["sha256"])


def _timing(row: sqlite3.Row) -> TimingRow:
    config_key = _text(row["config_key"])
    if not _is_whole(row):
        sweep = _text(row["sweep"])
        raise IntegrityError(
            f"the timing of configuration {config_key[:12]} of {sweep} does not match its digest",
            fix=f"sparsefleet resume {sweep} sets it aside and measures it again",
        )
    timings: list[dict[str, Any]] = json.loads(row["timings"])
    ref, reason = (None if row[name] is None else _text(row[name]) for name in ("samples_ref", "reason"))
    return TimingRow(config_key, json.loads(row["keys"]), _text(row["state"]), timings, ref, reason, _text(row["created"]))
