"""Which sweep is meant, and how it stands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparsefleet.cli.session import Session

if TYPE_CHECKING:
    from sparsefleet.ledger.ledger import Ledger
    from sparsefleet.ledger.rows import SweepRow

sweep_argument = click.argument("sweep", required=False, metavar="[SWEEP]")


def reading(session: Session) -> Ledger:
    """The ledger of this home, to read."""
    from sparsefleet.ledger import read_ledger

    return read_ledger(session.home)


def chosen(ledger: Ledger, sweep: str | None) -> SweepRow:
    """The sweep of that name or prefix; without one the newest.

    Raises:
        UserError: there is none, or the prefix fits several.
    """
    from sparsefleet.errors import UserError

    if sweep is not None:
        return ledger.sweep(sweep)
    every = ledger.sweeps()
    if not every:
        raise UserError("there is no sweep here yet", fix="sparsefleet submit grid quickstart")
    return max(every, key=lambda row: row.created)


def figures(row: SweepRow) -> dict[str, int]:
    """Trials by what became of them. ``done`` is ok, diverged or failed; ``waiting`` is neither done nor running nor cancelled."""
    from sparsefleet.ledger.rows import ACTIVE, FAILED

    counts = row.counts
    failed, running = sum(counts.get(s, 0) for s in FAILED), sum(counts.get(s, 0) for s in ACTIVE)
    ok, diverged, cancelled = counts.get("SUCCEEDED", 0), counts.get("DIVERGED", 0), counts.get("CANCELLED", 0)
    done, total = ok + diverged + failed, counts["total"]
    return {
        "ok": ok,
        "diverged": diverged,
        "failed": failed,
        "cancelled": cancelled,
        "running": running,
        "waiting": total - done - running - cancelled,
        "done": done,
        "total": total,
    }


def is_measured(row: SweepRow) -> bool:
    """True if the sweep asks for timings."""
    return bool(row.settings.get("measure", {}).get("level", "none") != "none")


def progress_of(row: SweepRow, home: Path) -> dict[str, Any] | None:
    """What the sweep's driver last wrote of its progress: ``running, phase, eta_s, nodes, waiting, finished``; None without a driver."""
    from sparsefleet.cli.progress import Snapshot
    from sparsefleet.ledger.rows import LIVE_SWEEP

    return (Snapshot(home, row.sweep).load() or None) if row.state in LIVE_SWEEP else None


def status_json(row: SweepRow, home: Path) -> dict[str, Any]:
    """One entry of ``status --json``."""
    from sparsefleet.ledger.lock import is_held

    return {
        "sweep": row.sweep,
        "state": row.state,
        "counts": row.counts,
        "name": row.name,
        "created": row.created,
        "ended": row.ended,
        "driven": is_held(home, row.sweep),
        "progress": progress_of(row, home),
    }


def following(row: SweepRow) -> str:
    """The command that makes sense after looking at the sweep."""
    verbs = {"RUNNING": "watch", "MEASURING": "watch", "INTERRUPTED": "resume", "CANCELLED": "resume"}
    return f"{verbs.get(row.state, 'compare')} {row.sweep}"


def exit_code(row: SweepRow) -> int:
    """5 if the sweep ended with failed trials, 130 if its driver was interrupted, else 0."""
    if row.state in ("INTERRUPTED", "CANCELLED"):
        return 130
    return 5 if figures(row)["failed"] or row.state == "FAILED" else 0
