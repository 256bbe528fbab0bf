"""Wall-clock times for people. Nothing is decided by them."""

from __future__ import annotations

from datetime import datetime, timezone


def now() -> str:
    """UTC, ISO 8601, milliseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
