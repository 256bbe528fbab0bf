"""What happened to each trial, as JSON lines: written by the driver while it happens, and never read by it."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sparsefleet.redact import redacted

_PROGRESS_EVERY_S = 2.0
_MAX_BYTES = 4 << 20
"""Of one trial's file; what is more is not written."""


def history_path(home: Path, key: str) -> Path:
    """One line per event: ``time`` (UTC), ``event``, ``attempt``, ``node``, and what belongs to the event."""
    return home / "logs" / "trials" / f"{key}.jsonl"


class Histories:
    """Appends to the histories of a home's trials."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._next: dict[str, float] = {}

    def write(self, key: str, event: str, attempt: int, node: str, **fields: Any) -> None:
        """One event of one trial: leased, started, progress (one in two seconds), ended, lost, late."""
        now = time.monotonic()
        if event == "progress":
            if now < self._next.get(key, 0.0):
                return
            self._next[key] = now + _PROGRESS_EVERY_S
        elif event == "ended":
            self._next.pop(key, None)
        line = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "event": event,
            "attempt": attempt,
            "node": node,
            **fields,
        }
        path = history_path(self._home, key)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            if os.fstat(fd).st_size < _MAX_BYTES:
                os.write(fd, (redacted(json.dumps(line, default=str)) + "\n").encode())
        finally:
            os.close(fd)


def read_history(home: Path, key: str) -> list[dict[str, Any]]:
    """All events of one trial, the oldest first; a line that a crash cut short is left out."""
    path = history_path(home, key)
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
