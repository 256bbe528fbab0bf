"""Records that are not what was committed, and records whose files are gone: found by digest, set aside, run again."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
from pathlib import Path

from sparsefleet.errors import IntegrityError
from sparsefleet.ledger.packed import Altered, Texts
from sparsefleet.ledger.rows import FAILED, TERMINAL
from sparsefleet.ledger.store import QUARANTINE, ArtifactStore

DAMAGED = "DAMAGED"
"""The end of an attempt whose record, or a file of it, was found altered later. It costs the trial nothing."""


def damaged(db: sqlite3.Connection, texts: Texts, sweep: str, store: ArtifactStore | None) -> dict[str, str]:
    """What is wrong with committed trials of the sweep, by key.

    Args:
        store: to look whether the files of the records are there, for trials of this machine; None: only the records.
    """
    found: dict[str, str] = {}
    rows = db.execute(
        "SELECT t.key, t.state, t.node, json_extract(record_text(t.key, r.body, t.record_sha256), '$.artifacts', '$.schema') AS told"
        " FROM sweep_trials s JOIN trials t ON t.key = s.key LEFT JOIN records r ON r.id = t.record WHERE s.sweep=? AND t.record NOT NULL",
        (sweep,),
    )
    here = socket.gethostname()
    for row in rows.fetchall():
        try:
            artifacts = json.loads(texts.told(row["key"], row["told"]))[0] or []
        except IntegrityError as error:
            found[row["key"]] = error.what
            continue
        gone = [ref["name"] for ref in artifacts if store is not None and row["node"] == here and not store.has(ref["sha256"])]
        if gone and row["state"] in TERMINAL:
            found[row["key"]] = f"of trial {row['key'][:12]} {', '.join(gone)} cannot be found any more"
    return found


def set_aside(db: sqlite3.Connection, texts: Texts, home: Path, key: str, reason: str) -> Path | None:
    """Takes a trial's record away, so that the trial runs again with fresh budgets; where the record lies now. Inside a transaction.

    Sweeps that show the trial have not ended any more.
    """
    row = db.execute(
        "SELECT t.attempt, t.record, r.body FROM trials t LEFT JOIN records r ON r.id = t.record"
        " AND NOT EXISTS (SELECT 1 FROM trials o WHERE o.record = t.record AND o.key != t.key)"  # it is the number that was altered
        " WHERE t.key=? AND t.record NOT NULL",
        (key,),
    ).fetchone()
    if row is None:
        return None
    folder = home / QUARANTINE
    folder.mkdir(exist_ok=True, mode=0o700)
    try:
        text, ending = texts.unpack(row["body"] or b""), "json"
    except Altered:
        text, ending = row["body"] or b"", "packed"
    path = folder / f"record-{key}-{row['attempt']}.{ending}"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(text)
    if row["body"] is not None:
        db.execute("DELETE FROM records WHERE id=?", (row["record"],))
    db.execute(
        "UPDATE trials SET state='PENDING', budget_from=attempt, reason=NULL, ended=NULL, record=NULL, record_sha256=NULL WHERE key=?",
        (key,),
    )
    db.execute('UPDATE attempts SET "end"=?, reason=? WHERE key=? AND n=?', (DAMAGED, reason, key, row["attempt"]))
    db.execute(
        "UPDATE sweeps SET state='INTERRUPTED' WHERE state IN ('DONE','FAILED') AND sweep IN (SELECT sweep FROM sweep_trials WHERE key=?)",
        (key,),
    )
    return path


def retry_failed(db: sqlite3.Connection, sweep: str) -> int:
    """Puts the sweep's failed trials back into the queue with fresh budgets; how many. Inside a transaction.

    A record that another trial names too stays: one of the two numbers was altered.
    """
    failed = f"state IN ({','.join('?' * len(FAILED))}) AND key IN (SELECT key FROM sweep_trials WHERE sweep=?)"
    values = (*FAILED, sweep)
    db.execute(
        f"DELETE FROM records WHERE id IN (SELECT record FROM trials WHERE {failed})"
        f" AND id NOT IN (SELECT record FROM trials WHERE record NOT NULL AND NOT ({failed}))",
        values * 2,
    )
    done = db.execute(
        f"UPDATE trials SET state='PENDING', budget_from=attempt, reason=NULL, record=NULL, record_sha256=NULL WHERE {failed}", values
    )
    return done.rowcount
