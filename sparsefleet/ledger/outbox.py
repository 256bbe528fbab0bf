"""What the tracking server has not seen yet, in the order in which it happened."""

from __future__ import annotations

import json
import sqlite3
from contextlib import suppress
from typing import Any

from sparsefleet.crash_points import passing
from sparsefleet.ledger.clock import now
from sparsefleet.ledger.integrity import DAMAGED
from sparsefleet.ledger.packed import Altered, Texts
from sparsefleet.ledger.rows import OutboxItem


def enqueue(db: sqlite3.Connection, kind: str, sweep: str, key: str | None, payload: dict[str, Any]) -> None:
    """Add an item; one of the same kind, sweep and key that still waits is replaced."""
    db.execute("DELETE FROM outbox WHERE kind=? AND sweep=? AND key IS ? AND uploaded IS NULL", (kind, sweep, key))
    db.execute(
        "INSERT INTO outbox (kind, sweep, key, payload, created) VALUES (?,?,?,?,?)",
        (kind, sweep, key, json.dumps(payload, allow_nan=False), now()),
    )
    passing("outbox-inside")


def enqueue_trial(db: sqlite3.Connection, key: str, attempt: int, state: str) -> None:
    """Tell every sweep that shows this trial that it ended; the one that ran it reports it as its own."""
    owner = db.execute("SELECT sweep FROM attempts WHERE key=? AND n=?", (key, attempt)).fetchone()
    for (sweep,) in db.execute("SELECT sweep FROM sweep_trials WHERE key=?", (key,)).fetchall():
        shared = owner is not None and owner[0] != sweep
        enqueue(db, "trial", sweep, key, {"attempt": attempt, "state": state, "shared": shared})
    if db.execute('SELECT 1 FROM attempts WHERE key=? AND "end"=?', (key, DAMAGED)).fetchone():  # its new run has to show its timings too
        for sweep, config_key in db.execute("SELECT sweep, config_key FROM timings WHERE instr(keys, ?)", (key,)).fetchall():
            enqueue(db, "timing", sweep, config_key, {"config_key": config_key})


def note_places(db: sqlite3.Connection, texts: Texts, sweep: str) -> None:
    """Write into the sweep's waiting items of trials how it shows them, before it does so no more: their results are still to be uploaded."""
    asked = (
        "SELECT o.id, o.payload, s.arm, s.twin_key, s.rival_key, s.request, (SELECT spec_id FROM trials WHERE key=s.twin_key) AS twin,"
        " (SELECT spec_id FROM trials WHERE key=s.rival_key) AS rival FROM outbox o JOIN sweep_trials s ON s.sweep=o.sweep AND s.key=o.key"
        " WHERE o.kind='trial' AND o.sweep=? AND o.uploaded IS NULL"
    )
    for row in db.execute(asked, (sweep,)).fetchall():
        place = {name: row[name] for name in ("arm", "twin_key", "rival_key")}
        with suppress(Altered):  # then its selections are not told
            place["request"] = {"tuning": json.loads(texts.text(row["request"])).get("tuning", {})}
        spec_ids = {row[f"{side}_key"]: row[side] for side in ("twin", "rival") if row[side]}
        payload = {**json.loads(row["payload"]), "place": place, "spec_ids": spec_ids}
        db.execute("UPDATE outbox SET payload=? WHERE id=?", (json.dumps(payload, allow_nan=False), row["id"]))


def waiting(db: sqlite3.Connection, limit: int) -> list[OutboxItem]:
    """The oldest items, those that failed before last."""
    rows = db.execute("SELECT * FROM outbox WHERE uploaded IS NULL ORDER BY attempts, id LIMIT ?", (limit,))
    return [
        OutboxItem(row["id"], row["kind"], row["sweep"], row["key"], json.loads(row["payload"]), row["created"], row["attempts"])
        for row in rows
    ]


def size(db: sqlite3.Connection, without: str) -> int:
    """How many items wait, but for those of one kind."""
    count: int = db.execute("SELECT count(*) FROM outbox WHERE uploaded IS NULL AND kind != ?", (without,)).fetchone()[0]
    return count


def mark_uploaded(db: sqlite3.Connection, id: int, run_id: str | None) -> None:
    """The server has it."""
    db.execute("UPDATE outbox SET uploaded=?, run_id=?, error=NULL WHERE id=?", (now(), run_id, id))


def again(db: sqlite3.Connection, sweep: str) -> int:
    """Every item of the sweep waits again, in the order in which things happened: items are kept, and writing one twice changes nothing."""
    return db.execute("UPDATE outbox SET uploaded=NULL, attempts=0, error=NULL WHERE sweep=?", (sweep,)).rowcount
