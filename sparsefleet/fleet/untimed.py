"""What of a sweep is still to be timed. Imports neither ray nor torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsefleet.ledger import Ledger
from sparsefleet.ledger.rows import TimingRow
from sparsefleet.measure.config import MeasureJob, groups

DEFAULT_BATCH_SIZES: Mapping[str, tuple[Any, ...]] = {"screen": ("train",), "publish": ("train", 1, 32, 256)}
"""Batch sizes that are timed where the grid names none."""
_KEPT_STATES = ("SUCCEEDED", "INCORRECT", "OOM")
"""Ends that are a fact of the configuration: another sweep need not find them out again."""
_DOUBT = "NOT_TRUSTWORTHY"


def untimed(ledger: Ledger, sweep: str, asked: Mapping[str, Any], *, again: bool = False) -> list[MeasureJob]:
    """The configurations that no sweep has timed yet; timings that another sweep took are entered for this one too.

    A timing that did not pass its gates, on a busy machine say, is taken over by no other sweep: it is tried again.

    Args:
        asked: the grid's ``measure:`` block.
        again: timings of this sweep that were not trusted count as not taken.
    """
    if asked.get("level", "none") == "none":
        return []
    names = ("ops", "baselines")
    batch_sizes = asked.get("batch_sizes") or DEFAULT_BATCH_SIZES[asked["level"]]
    wanted = groups(ledger.trials(sweep), batch_sizes, **{name: asked[name] for name in names if name in asked})
    have = {row.config_key: row for row in ledger.timings(sweep) if not again or _trusted(row)}
    left: list[MeasureJob] = []
    with ledger.batch():
        for job in wanted:
            known = have.get(job.config_key) or _good_enough(ledger.timing(job.config_key, _KEPT_STATES), str(asked["level"]))
            if known is None:
                left.append(job)
            elif known.config_key not in have or set(known.keys) != set(job.keys):
                ledger.share_timing(sweep, known, job.keys)
    return left


def _good_enough(row: TimingRow | None, level: str) -> TimingRow | None:
    """The timing, if it is trusted and was taken at the asked level or a stricter one."""
    strict = row is not None and all(timing.get("level") in (level, "publish") for timing in row.timings)
    return _trusted(row) if strict else None


def _trusted(row: TimingRow | None) -> TimingRow | None:
    doubtful = row is not None and any(_DOUBT in (timing.get("verdict"), timing.get("rival_verdict")) for timing in row.timings)
    return None if doubtful else row
