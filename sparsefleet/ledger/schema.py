"""The ledger's tables, and how its file is opened.

``spec`` of trials and ``body`` of records and texts are packed (``sparsefleet.ledger.packed``); ``resources``, ``limits`` and ``request`` of
sweep_trials and ``text`` of dictionaries are numbers of texts, ``record`` of trials is one of records. A record has a table of its own so that
the rows that are looked through stay small; ``record_sha256`` is that of its text, ``sha256`` of timings that of the rest of the row.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

from sparsefleet.errors import IntegrityError, UserError
from sparsefleet.space import means_no_space, min_free_mib, no_space, shortage

VERSION = 3
FILE = "ledger.db"
_LOG_PAGES = 128
"""Of the write-ahead log before it is taken over into the file: SQLite's 1,000 let a log of 4 MiB lie beside a ledger of 4 MiB."""
_LOCKED_S = 60.0
"""How long another process may hold the file."""
_MADE_WITHIN_S = 2.0
"""A file without tables is one that another process is about to fill."""

_TABLES = """
CREATE TABLE sweeps (
    sweep TEXT PRIMARY KEY, name TEXT NOT NULL, digest TEXT NOT NULL, grid_text TEXT NOT NULL,
    state TEXT NOT NULL, created TEXT NOT NULL, ended TEXT, settings TEXT NOT NULL
);
CREATE TABLE texts (id INTEGER PRIMARY KEY, sha256 TEXT NOT NULL UNIQUE, body BLOB NOT NULL, copy BLOB NOT NULL);
CREATE TABLE dictionaries (kind TEXT PRIMARY KEY, text INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE records (id INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE trials (
    key TEXT PRIMARY KEY, spec_id TEXT NOT NULL, spec BLOB NOT NULL, state TEXT NOT NULL DEFAULT 'PENDING',
    attempt INTEGER NOT NULL DEFAULT 0, budget_from INTEGER NOT NULL DEFAULT 0, owner TEXT, node TEXT, reason TEXT,
    started TEXT, ended TEXT, record INTEGER, record_sha256 TEXT
) WITHOUT ROWID;
CREATE INDEX trials_spec ON trials (spec_id);
CREATE TABLE sweep_trials (
    sweep TEXT NOT NULL REFERENCES sweeps, ordinal INTEGER NOT NULL, key TEXT NOT NULL REFERENCES trials, arm TEXT NOT NULL,
    twin_key TEXT, rival_key TEXT, depends_on TEXT, resources INTEGER NOT NULL, limits INTEGER NOT NULL, request INTEGER NOT NULL,
    cached INTEGER NOT NULL, PRIMARY KEY (sweep, ordinal), UNIQUE (key, sweep)
) WITHOUT ROWID;
CREATE TABLE attempts (
    key TEXT NOT NULL REFERENCES trials, n INTEGER NOT NULL, sweep TEXT NOT NULL, node TEXT NOT NULL, started TEXT NOT NULL,
    ended TEXT, "end" TEXT, reason TEXT, t_s REAL, PRIMARY KEY (key, n)
) WITHOUT ROWID;
CREATE TABLE timings (
    sweep TEXT NOT NULL REFERENCES sweeps, config_key TEXT NOT NULL, keys TEXT NOT NULL, state TEXT NOT NULL, timings TEXT NOT NULL,
    samples_ref TEXT, reason TEXT, created TEXT NOT NULL, sha256 TEXT NOT NULL, PRIMARY KEY (sweep, config_key)
) WITHOUT ROWID;
CREATE TABLE samples (ref TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, sweep TEXT NOT NULL, key TEXT, payload TEXT NOT NULL,
    created TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, error TEXT, uploaded TEXT, run_id TEXT
);
CREATE INDEX outbox_waiting ON outbox (attempts, id) WHERE uploaded IS NULL;
CREATE INDEX outbox_of ON outbox (kind, sweep, key);
"""


def open_file(home: Path, *, read_only: bool) -> sqlite3.Connection:
    """A connection in WAL mode with full synchronisation.

    Raises:
        UserError: there is no ledger to read, or another sparsefleet wrote it.
        IntegrityError: the file is not a ledger.
    """
    path = home / FILE
    if read_only and not path.exists():
        raise _none(home)
    if path.exists() and not path.is_file():
        raise IntegrityError(f"{path} is not a regular file")
    if not read_only:
        try:
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            _create_private(path)
        except OSError as error:
            if means_no_space(error):
                raise no_space(home, min_free_mib()) from error
            raise
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}", uri=True, isolation_level=None, timeout=_LOCKED_S
    )
    try:
        return _prepare(db, path, read_only=read_only)
    except sqlite3.DatabaseError as error:
        db.close()
        unnamed = "disk I/O error" in str(error) and not hasattr(error, "sqlite_errorname")  # Python 3.10
        if means_no_space(error) or (unnamed and shortage([home], min_free_mib())):
            raise no_space(home, min_free_mib()) from error
        raise IntegrityError(
            f"{path} cannot be read", cause=str(error), fix="restore it from a backup, or choose another SPARSEFLEET_HOME"
        ) from error
    except BaseException:
        db.close()
        raise


def _create_private(path: Path) -> None:
    """An empty file of mode 0600; SQLite's own mode follows the umask.

    One that exists is not opened: closing any descriptor of it would drop the locks that other connections of this process hold, and
    another process would then take the log away from under them.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return


def _none(home: Path) -> UserError:
    return UserError(
        f"there is no ledger in {home}", fix="submit a grid first, or set SPARSEFLEET_HOME: sparsefleet submit grid quickstart"
    )


def _to_wal(db: sqlite3.Connection) -> None:
    """Here SQLite waits for nobody: while another process does the same to a new file, it refuses at once."""
    until = time.monotonic() + _LOCKED_S
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)


def _prepare(db: sqlite3.Connection, path: Path, *, read_only: bool) -> sqlite3.Connection:
    db.row_factory = sqlite3.Row
    if not read_only:
        _to_wal(db)
        db.execute("PRAGMA synchronous=FULL")
        db.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
        db.execute(f"PRAGMA journal_size_limit={_LOG_PAGES * 4096}")
        db.execute("PRAGMA foreign_keys=ON")
        db.execute("BEGIN IMMEDIATE")  # two processes may create it at once
        if db.execute("PRAGMA user_version").fetchone()[0] == 0:
            for statement in _TABLES.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version={VERSION}")
        db.execute("COMMIT")
    until = time.monotonic() + _MADE_WITHIN_S
    while not (found := db.execute("PRAGMA user_version").fetchone()[0]) and time.monotonic() < until:
        time.sleep(0.02)
    if not found:
        raise _none(path.parent)
    if found != VERSION:
        raise UserError(
            f"{path} has ledger format {found}, this sparsefleet reads {VERSION}",
            fix="set SPARSEFLEET_HOME to another folder: what is here stays, for the sparsefleet that wrote it",
        )
    return db
