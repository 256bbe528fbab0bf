"""What of a sweep is still to be timed. Imports neither ray nor torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsefleet.ledger import Ledger
from sparsefleet.ledger.rows import NOT_TAKEN, TimingRow
from sparsefleet.measure.config import MeasureJob, groups
from sparsefleet.measure.verdict import is_doubtful

DEFAULT_BATCH_SIZES: Mapping[str, tuple[Any, ...]] = {"screen": ("train",), "publish": ("train", 1, 32, 256)}
"""Batch sizes that are timed where the grid names none."""
_READS = ("state", "counts", "code", "device", "accuracy")
"""Keys of a record that say what is to be timed."""
_SHARED = ("SUCCEEDED", "INCORRECT")
"""Ends that another sweep need not find out again; memory that was not free once may be free now."""
_AGAIN = ("TIMEOUT", "CRASHED", *NOT_TAKEN)
"""Ends that say nothing of the configuration: the next driver of the sweep tries again."""


def untimed(ledger: Ledger, sweep: str, asked: Mapping[str, Any], *, again: bool = False, machine: str | None = None) -> list[MeasureJob]:
    """The configurations that are still to be timed; timings that another sweep took on this machine are entered for this one too.

    A timing that did not pass its gates, on a busy machine say, is taken over by no other sweep: it is tried again. One that was taken beside
    other nets than the sweep has now, or by another harness, stands for none of its trials any more.

    Args:
        asked: the grid's ``measure:`` block.
        again: timings of this sweep that were not trusted, or failed, count as not taken.
        machine: the fingerprint's id of the machine that measures; None if not known yet: then nothing is taken over.
    """
    if asked.get("level", "none") == "none":
        return []
    names = ("ops", "baselines")
    batch_sizes = asked.get("batch_sizes") or DEFAULT_BATCH_SIZES[asked["level"]]
    wanted = groups(
        ledger.trials(sweep, with_record=_READS, with_attempts=False), batch_sizes, **{name: asked[name] for name in names if name in asked}
    )
    rows, asked_for = ledger.timings(sweep, every=True), {job.config_key for job in wanted}
    have = {row.config_key: row for row in rows if _is_taken(row, again)}
    left: list[MeasureJob] = []
    with ledger.batch():
        for row in rows:
            if row.keys and row.config_key not in asked_for:
                ledger.share_timing(sweep, row, [])
        for job in wanted:
            known = have.get(job.config_key) or _good_enough(ledger.timing(job.config_key, _SHARED), str(asked["level"]), machine)
            if known is None:
                left.append(job)
            elif known.config_key not in have or set(known.keys) != set(job.keys):
                ledger.share_timing(sweep, known, job.keys)
    return left


def lacks_timings(ledger: Ledger, sweep: str) -> bool:
    """True if the fleet was to blame that something has no timing: the sweep has not ended, whatever its state says."""
    return any(row.state in NOT_TAKEN for row in ledger.timings(sweep))


def _is_taken(row: TimingRow, again: bool) -> bool:
    if again:
        return row.state == "INCORRECT" or (bool(row.timings) and not any(map(is_doubtful, row.timings)))
    return row.state not in _AGAIN


def _good_enough(row: TimingRow | None, level: str, machine: str | None) -> TimingRow | None:
    """The timing, if it is trusted and was taken on this machine, at the asked level or a stricter one."""
    if row is None or machine is None or any(map(is_doubtful, row.timings)):
        return None
    same = all(timing.get("level") in (level, "publish") and timing.get("fingerprint") == machine for timing in row.timings)
    return row if same else None
