"""What trials print: one file per attempt, written while it runs."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sparsefleet.errors import UserError
from sparsefleet.home import artifact_root
from sparsefleet.ledger import Ledger, TrialRow
from sparsefleet.ledger.rows import ACTIVE
from sparsefleet.ledger.spool import store_of

LOG = "log.txt"
"""Name of the artifact that holds the log of the committed attempt, where it printed anything."""
_POLL_S = 0.2


def log_path(home: Path, key: str, attempt: int) -> Path:
    """Where the attempt's output goes, on the node that runs it."""
    return home / "logs" / "trials" / f"{key}-{attempt}.log"


def home_id(home: Path) -> str:
    """A random word that stands in the home: a node that reads another one, or none, at the same path has a home of its own."""
    path = home / "logs" / ".home-id"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with suppress(FileExistsError), os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(16))
    return path.read_text()


def is_home(home: Path, known: str) -> bool:
    """True if this node sees the home whose ``home_id`` is ``known``."""
    try:
        return (home / "logs" / ".home-id").read_text() == known
    except OSError:
        return False


def read_log(home: Path, row: TrialRow, attempt: int | None = None) -> str:
    """What the attempt has printed up to now; default: the last one.

    Raises:
        UserError: it has not run, or it ran on another node and printed nothing that was kept.
    """
    attempt = attempt or row.attempt
    path = log_path(home, row.key, attempt)
    if path.exists():
        return path.read_text(encoding="utf-8", errors="backslashreplace")
    kept = [a for a in (row.record or {}).get("artifacts", []) if a["name"] == LOG]
    if kept and attempt == row.attempt:
        return store_of(artifact_root(), home).get(kept[0]["sha256"], path).read_text(encoding="utf-8", errors="backslashreplace")
    if row.record is not None:
        return ""
    raise UserError(f"trial {row.spec_id} has no log of attempt {attempt}", cause=f"it is {row.state}, {row.attempt} attempts so far")


def follow_log(home: Path, ledger: Ledger, key: str) -> Iterator[str]:
    """Pieces of the running attempt's output as they come, until it ends."""
    row = ledger.trial(key)
    path, offset = log_path(home, row.key, row.attempt), 0
    while True:
        live = ledger.trial(key).state in ACTIVE
        if path.exists():
            with path.open("rb") as file:
                file.seek(offset)
                piece = file.read()
            offset += len(piece)
            if piece:
                yield piece.decode("utf-8", errors="backslashreplace")
        if not live:
            return
        time.sleep(_POLL_S)
