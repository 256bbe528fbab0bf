"""Which figures may be used: what is not trustworthy is shown struck out, and enters no order, no median and no break-even."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

UNTRUSTED = "NOT_TRUSTWORTHY"
NOTHING = "NONE"
"""The verdict where there is nothing to compare with."""
_MASKED = "masked_dense"
_OF_THE_CLOCK = (
    "step_ms",
    "step_ms_p10",
    "step_ms_p90",
    "dense_step_ms",
    "vs_dense_width",
    "vs_small_dense",
    "realised_fraction",
    "fraction_of_limit",
    "breakeven_calls",
)
_ASKED = ("op", "batch_size", "dtype", "device", "threads", "baseline")


def trusted(timing: Mapping[str, Any]) -> bool:
    """True if the measurement earned its verdict; see ``sparsefleet.measure.verdict``."""
    return timing["verdict"] != UNTRUSTED and not (timing["verdict"] == NOTHING and timing["reasons"])


def rival_trusted(timing: Mapping[str, Any]) -> bool:
    """The same of the comparison with small-dense, which the timing's own trouble spoils too."""
    return trusted(timing) and timing["rival_verdict"] != UNTRUSTED


def rankable(row: Row, name: str) -> Any:
    """The value by which rows are ordered: none where the clock's figure is not trusted."""
    if name in _OF_THE_CLOCK and row["timing_trusted"] is False:
        return None
    if name == "vs_small_dense" and row["vs_small_dense_verdict"] == UNTRUSTED:
        return None
    return row[name]


def missing(row: Row) -> list[str]:
    """What the row's speed-up may not be printed without and the row does not have; empty if it may be printed, or if there is none."""
    if row["vs_dense_width"] is None:
        return []
    conditions = row["timing"] or {}
    found = [name.replace("_size", "") for name in _ASKED if conditions.get(name) in (None, "")]
    if row["dense_step_ms"] is None:
        found.append("the absolute dense time")
    if row["vs_dense_width_ci"] is None:
        found.append("its interval")
    if row["theoretical_speedup"] is None:
        found.append("the theoretical speed-up")
    if not row["acc_verdict"]:
        found.append("an accuracy verdict")
    return found


def untrustworthy(rows: Sequence[Row]) -> list[str]:
    """Names of the timings of these rows that are not trustworthy, each with its reasons."""
    seen: set[str] = set()
    found = []
    for row in rows:
        for timing in row["timings"]:
            if timing["config_key"] in seen or UNTRUSTED not in (timing["verdict"], timing["rival_verdict"]):
                continue
            seen.add(timing["config_key"])
            found.append(
                f"{name(row)}, {timing['op']}, batch {timing['batch_size']}: {'; '.join(timing['reasons'] or timing['rival_reasons']) or 'no reason is stored'}"
            )
    return found


def untimed(rows: Sequence[Row]) -> list[str]:
    """Names of the sparse rows that have a result and no timing at all, each with what is known of why."""
    without = [row for row in rows if _can_be_timed(row) and not row["timings"] and not row["other_machines"]]
    return [name(row) + (f": {row['timing_note']}" if row["timing_note"] else "") for row in without]


def name(row: Row) -> str:
    """``set csr at density 0.1``."""
    return " ".join(filter(None, [row["method"], row["variant"], row["layer"]])) + f" at density {row['density_asked']:g}"


def screened(rows: Sequence[Row]) -> bool:
    """True if a timing of the rows is of screen level."""
    return any(level == "screen" for row in rows for level in _levels(row))


def _levels(row: Row) -> Iterator[str]:
    if row["timing_level"]:
        yield row["timing_level"]
    for timing in row["timings"]:
        yield timing["level"]


def _can_be_timed(row: Row) -> bool:
    return bool(row["arm"] != "dense" and row["n_ok"] and row["execution"] not in (None, "dense", _MASKED))
