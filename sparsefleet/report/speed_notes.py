"""The lines under a table that say what the clock's figures rest on, and which of them may not be used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sparsefleet.report.speed import times
from sparsefleet.report.trust import name, screened, untimed, untrustworthy

Row = Mapping[str, Any]
SCREEN = "screen level: for choosing what to measure properly; publish level (measure: {level: publish}) is for results"
PAGE = "docs/numbers.md"
_MOST = 3
_OPS = {"step": "whole training step", "forward": "forward pass"}


def speed_notes(rows: Sequence[Row]) -> list[str]:
    """One line each; nothing for what there is nothing to say about."""
    return [
        *_timed(rows),
        *([SCREEN] if screened(rows) else []),
        *_distrusted(rows),
        *_no_headline(rows),
        *_baselines(rows),
        *_small_dense(rows),
        *_dense_times(rows),
        *_theory(rows),
        *_rewiring(rows),
        *_masked(rows),
        *_machines(rows),
        *_remarks(rows),
        *_not_timed(rows),
    ]


def conditions(timing: Mapping[str, Any]) -> str:
    """``whole training step, batch 64, float32, cpu, 1 thread, against dense_eager``."""
    threads = f"{timing['threads']} thread{'s' if timing['threads'] != 1 else ''}"
    against = "" if timing["baseline"] == "none" else f", against {timing['baseline']}"
    return (
        f"{_OPS.get(timing['op'], timing['op'])}, batch {timing['batch_size']}, {timing['dtype']}, {timing['device']}, {threads}{against}"
    )


def _timed(rows: Sequence[Row]) -> list[str]:
    told: dict[str, int] = {}
    for row in rows:
        if row["timing"]:
            line = conditions(row["timing"])
            told[line] = told.get(line, 0) + 1
    return [f"timed: {line}" + (f" ({n} of {sum(told.values())} rows)" if len(told) > 1 else "") for line, n in told.items()]


def _distrusted(rows: Sequence[Row]) -> list[str]:
    found = untrustworthy(rows)
    if not found:
        return []
    n = len({t["config_key"] for row in rows for t in row["timings"]})
    lines = [
        f"{len(found)} of {n} timings are NOT_TRUSTWORTHY: in parentheses, and in no order, median or break-even; "
        f"sparsefleet resume SWEEP --remeasure takes them again ({PAGE} explains the reasons)"
    ]
    lines += [f"not trustworthy: {text}" for text in found[:_MOST]]
    return [*lines, f"not trustworthy: and {len(found) - _MOST} more (compare --json)"] if len(found) > _MOST else lines


def _no_headline(rows: Sequence[Row]) -> list[str]:
    return _grouped("no speed-up is printed for {} without {}", ((name(row), ", ".join(row["headline_missing"])) for row in rows))


def _baselines(rows: Sequence[Row]) -> list[str]:
    """Which forms of the dense net could not be tried, so that the baseline is not the fastest of them all."""
    untried = [one for timing in _every(rows) for one in timing["baselines_tried"] if one["median_s"] is None and one["why_not"]]
    return list(dict.fromkeys(f"no {one['name']}: {one['why_not']}" for one in untried))


def _small_dense(rows: Sequence[Row]) -> list[str]:
    if any(row["vs_small_dense"] is not None for row in rows):
        return ["small-dense: the dense model narrowed to the sparse net's number of trainable parameters, timed in the same rounds"]
    return []


def _dense_times(rows: Sequence[Row]) -> list[str]:
    """The absolute dense time stands in the dense row; where there is none it is said here."""
    if any(row["arm"] == "dense" and row["step_ms"] is not None for row in rows):
        return []
    dense = [row["dense_step_ms"] for row in rows if row["dense_step_ms"] is not None]
    return [f"the dense side took {min(dense):.3g} to {max(dense):.3g} ms"] if dense else []


def _theory(rows: Sequence[Row]) -> list[str]:
    parts = []
    for word, column in (("counted FLOPs", "theoretical_speedup"), ("this machine's limits", "roofline_speedup")):
        found = [row[column] for row in rows if row[column] is not None and row["vs_dense_width"] is not None]
        if found:
            low, high = times(min(found)), times(max(found))
            parts.append(f"{word} {low if low == high else f'{low} to {high}'}")
    return [f"the speed-up in theory, by {', by '.join(parts)} (compare --theory sets it beside the measured one)"] if parts else []


def _rewiring(rows: Sequence[Row]) -> list[str]:
    shares = [row["method_share"] for row in rows if row["method_share"] and row["timing_trusted"]]
    return [f"step times include the rewiring, spread over all steps: up to {100 * max(shares):.2g} % of the step"] if shares else []


def _masked(rows: Sequence[Row]) -> list[str]:
    if any(row["execution"] == "masked_dense" for row in rows):
        return ["masked: stored and multiplied as a dense matrix, so it has no speed-up by definition"]
    return []


def _machines(rows: Sequence[Row]) -> list[str]:
    """One line per machine that is not the one of the newest timing: left out, or shown because someone asked."""
    counts: dict[str, int] = {}
    facts: dict[str, list[str]] = {}
    mixed = False
    for row in rows:
        for machine, differing in row["other_machines"].items():
            counts[machine] = counts.get(machine, 0) + 1
            facts[machine] = differing
            mixed = mixed or any(t["fingerprint"] == machine for t in row["timings"])
    lines = []
    for machine, n in counts.items():
        told = f"({machine}{', differing: ' + ', '.join(facts[machine]) if facts[machine] else ''})"
        timed = f"{n} row{'s were' if n > 1 else ' was'} timed on another machine {told}"
        lines.append(
            f"{timed}: shown because of --allow-cross-machine; its times are not to be compared with the others'"
            if mixed
            else timed + ": not compared; --allow-cross-machine shows them"
        )
    return lines


def _remarks(rows: Sequence[Row]) -> list[str]:
    own = ((name(row), text) for row in rows if row["timings"] and row["arm"] != "dense" for text in row["timing_note"].split("; "))
    lines = _grouped("{}: {}", own)
    return [*lines[:_MOST], f"and {len(lines) - _MOST} more remarks on timings (compare --json)"] if len(lines) > _MOST else lines


def _not_timed(rows: Sequence[Row]) -> list[str]:
    """Rows whose timing was asked for and failed; those that nobody asked for say nothing."""
    lines = [f"no timing: {text}" for text in untimed(rows) if ": " in text]
    return [*lines[:_MOST], f"no timing: and {len(lines) - _MOST} more (compare --json)"] if len(lines) > _MOST else lines


def _grouped(line: str, pairs: Iterable[tuple[str, str]]) -> list[str]:
    """One line per text, with the names of the rows that it holds for."""
    names: dict[str, list[str]] = {}
    for row, text in pairs:
        if text:
            names.setdefault(text, []).append(row)
    return [line.format(_some(rows), text) for text, rows in names.items()]


def _some(names: Sequence[str]) -> str:
    shown = "; ".join(names[:_MOST])
    return f"{shown} and {len(names) - _MOST} more" if len(names) > _MOST else shown


def _every(rows: Sequence[Row]) -> list[Mapping[str, Any]]:
    return [timing for row in rows for timing in row["timings"]]
