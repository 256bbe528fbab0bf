"""``measure recheck``: every timing of a sweep computed again from its raw samples, in this process."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from sparsefleet.cli.session import Session
from sparsefleet.cli.sweeps import chosen, reading
from sparsefleet.cli.talk import data, emit, next_command

if TYPE_CHECKING:
    from sparsefleet.ledger.ledger import Ledger
    from sparsefleet.ledger.rows import TimingRow


def recheck_sweep(session: Session, sweep: str, as_json: bool) -> None:
    """Recomputes and says what came out.

    Raises:
        IntegrityError: a stored figure or verdict does not follow from its raw samples.
    """
    from sparsefleet.errors import IntegrityError

    ledger = reading(session)
    row = chosen(ledger, sweep)
    rows = ledger.timings(row.sweep)
    done = [_again(ledger, one, timing) for one in rows for timing in one.timings]
    wrong = [one for one in done if one["differences"]]
    without = sum(not one.timings for one in rows)
    if as_json:
        emit({"sweep": row.sweep, "rechecked": len(done), "wrong": len(wrong), "without_timing": without, "timings": done})
    elif not wrong:
        data(_said(row.sweep, done, without))
    if wrong:
        listed = [
            f"{one['op']}, batch {one['batch_size']} ({one['config_key'][:12]}): {text}" for one in wrong for text in one["differences"]
        ]
        raise IntegrityError(
            f"{len(wrong)} of {len(done)} timings of {row.sweep} do not follow from their raw samples",
            cause="\n         ".join(listed),
            fix=f"measure again under this version: sparsefleet resume {row.sweep} --remeasure",
        )
    if not as_json:
        next_command(f"compare {row.sweep}")


def _again(ledger: Ledger, row: TimingRow, timing: dict[str, Any]) -> dict[str, Any]:
    from sparsefleet.errors import IntegrityError, UserError
    from sparsefleet.measure.recheck import recheck

    named = {name: timing.get(name) for name in ("config_key", "op", "batch_size", "level", "verdict", "rival_verdict")}
    if row.samples_ref is None:
        return {**named, "differences": ["there are no raw samples"]}
    try:
        return {**named, "differences": recheck(timing, ledger.samples(row.samples_ref), ledger.samples)}
    except (IntegrityError, UserError) as error:  # the samples are gone, altered, or of another version
        return {**named, "differences": [error.what]}


def _said(sweep: str, done: list[dict[str, Any]], without: int) -> str:
    if not done:
        return f"{sweep} has no timings"
    counts = Counter(one["verdict"] for one in done)
    told = ", ".join(f"{word} {n}" for word, n in sorted(counts.items()))
    failed = f"; {without} configuration{'s' if without > 1 else ''} without a timing" if without else ""
    n = f"{len(done)} timing{'s' if len(done) > 1 else ''}"
    return f"{n} of {sweep} computed again from the raw samples: every figure and verdict the same to the last digit ({told}){failed}"
