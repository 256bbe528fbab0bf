"""The lines under a table: under which conditions a figure holds, and what went wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sparsefleet.report.intervals import BOOTSTRAP_FROM

Row = Mapping[str, Any]
_MAX_FAILURES = 5
_MAX_TIMINGS = 3


def notes(rows: Sequence[Row]) -> list[str]:
    """One line each; nothing for what there is nothing to say about."""
    return [*_intervals(rows), *_timing(rows), *_baselines(rows), *_masked(rows), *_twins(rows), *_seeds(rows)]


def conditions(timing: Mapping[str, Any]) -> str:
    """``step, batch 64, float32, cpu:…, 1 thread, against dense_eager``."""
    threads = f"{timing['threads']} thread{'s' if timing['threads'] != 1 else ''}"
    op = {"step": "whole training step", "forward": "forward pass"}.get(timing["op"], timing["op"])
    return f"{op}, batch {timing['batch_size']}, {timing['dtype']}, {timing['device']}, {threads}, against {timing['baseline']}"


def _intervals(rows: Sequence[Row]) -> list[str]:
    if all(row["accuracy_ci"] is None for row in rows):
        return []
    rule = f"Student's t below {BOOTSTRAP_FROM} seeds, percentile bootstrap from there on"
    return [
        f"accuracy: last checkpoint, test set evaluated once; 95 % intervals over seeds ({rule}); differences to the twin are paired by seed"
    ]


def _timing(rows: Sequence[Row]) -> list[str]:
    told: dict[str, int] = {}
    for row in rows:
        if row["timing"]:
            line = conditions(row["timing"])
            told[line] = told.get(line, 0) + 1
    lines = [f"timed: {line}" + (f" ({n} of {sum(told.values())} rows)" if len(told) > 1 else "") for line, n in told.items()]
    own = [
        f"{row['method']} at density {row['density_asked']:g}: {row['timing_note']}"
        for row in rows
        if row["timing_note"] and row["arm"] != "dense"
    ]
    if len(own) > _MAX_TIMINGS:
        return [*lines, *own[:_MAX_TIMINGS], f"and {len(own) - _MAX_TIMINGS} more timings with a note (compare --json)"]
    return [*lines, *own]


def _baselines(rows: Sequence[Row]) -> list[str]:
    """The absolute dense time stands in the dense row; where there is none it is said here."""
    if any(row["arm"] == "dense" and row["step_ms"] is not None for row in rows):
        return []
    dense = [row["dense_step_ms"] for row in rows if row["dense_step_ms"] is not None]
    return [f"the dense side took {min(dense):.3g} to {max(dense):.3g} ms"] if dense else []


def _masked(rows: Sequence[Row]) -> list[str]:
    if any(row["execution"] == "masked_dense" for row in rows):
        return ["masked: stored and multiplied as a dense matrix, so it has no speed-up by definition"]
    return []


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
