"""The lines under a table: under which conditions a figure holds, and what went wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sparsefleet.report.accuracy_notes import accuracy_notes
from sparsefleet.report.speed_notes import speed_notes

Row = Mapping[str, Any]
_MAX_FAILURES = 5


def notes(rows: Sequence[Row]) -> list[str]:
    """One line each; nothing for what there is nothing to say about."""
    return [*accuracy_notes(rows), *speed_notes(rows), *_twins(rows), *_seeds(rows)]


def _twins(rows: Sequence[Row]) -> list[str]:
    told: dict[str, list[str]] = {}
    for row in rows:
        if row["twin_differs"]:
            line = "; ".join(f"{path} {json.dumps(a)} against {json.dumps(b)}" for path, (a, b) in sorted(row["twin_differs"].items()))
            told.setdefault(line, []).append(row["method"])
    return [f"not the twin's settings: {', '.join(dict.fromkeys(methods))}: {line}" for line, methods in told.items()]


def _seeds(rows: Sequence[Row]) -> list[str]:
    lines = []
    diverged = sum(row["n_diverged"] for row in rows)
    if diverged:
        lines.append(f"{diverged} diverged trial{'s' if diverged > 1 else ''} count{'' if diverged > 1 else 's'} as chance accuracy")
    failures = [(row, text) for row in rows for text in row["failures"]]
    lines += [f"failed: {row['method']} at density {row['density_asked']:g}: {text}" for row, text in failures[:_MAX_FAILURES]]
    if len(failures) > _MAX_FAILURES:
        lines.append(f"failed: and {len(failures) - _MAX_FAILURES} more reasons (sparsefleet status --json)")
    return lines
