"""A driver's events, turned into a view."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsefleet.cli.pace import MeasurePace, Row, TrialPace
from sparsefleet.cli.progress import Snapshot, View, screen
from sparsefleet.cli.sweeps import figures
from sparsefleet.cli.talk import say
from sparsefleet.errors import IntegrityError
from sparsefleet.ledger.rows import LIVE_SWEEP, TERMINAL

if TYPE_CHECKING:
    from sparsefleet.fleet.events import Event
    from sparsefleet.ledger.ledger import Ledger
    from sparsefleet.ledger.rows import SweepRow

_COUNT_EVERY_S = 0.5
_COUNT_SHARE = 0.05
"""Counting a large sweep takes longer; it may take this share of the time."""
_ROW_EVERY_S = 3.0


class Feed:
    """Shows a sweep while this process drives it. The counts are the ledger's, the steps and losses the events'.

    Args:
        before_upload: called once, when the sweep has ended and the display with it, before anything waits for MLflow.
    """

    def __init__(self, home: Path, row: SweepRow, ledger: Ledger, before_upload: Callable[[], None]) -> None:
        self._ledger = ledger
        self._pace = TrialPace(ledger.trials(row.sweep, with_record=False, with_attempts=False))
        self._pace.known(ledger.seconds(row.sweep))
        self._n_measures = self._pace.n_measures(row.settings.get("measure", {}))
        self._measuring = MeasurePace(ledger.measure_seconds() if self._n_measures else None)
        self._view = View(row.sweep)
        self._snapshot = Snapshot(home, row.sweep)
        self._count_at = 0.0
        self._row_at = 0.0
        self._unsaid: list[Row] = []
        self._count()
        self._screen = screen()
        self._closed = False
        self._before_upload = before_upload

    def take(self, event: Event) -> None:
        """One event."""
        data = event.data
        if self._closed:
            self._after_the_table(event)
            return
        urgent = event.kind in ("sweep", "note")
        if event.kind == "progress":
            self._running(data)
        elif event.kind == "trial":
            urgent = self._trial(data)
        elif event.kind == "measure":
            self._rows_done(at_once=True)
            self._view.phase, self._view.eta_s, line = self._measuring.take(data)
            self._view.finished += [line] if line else []
        elif event.kind == "upload":
            self._view.phase = f"uploading {data['waiting']} to MLflow" if data.get("waiting") else ""
            self._view.eta_s = None
            if self._ledger.sweep(self._view.sweep).state not in LIVE_SWEEP:  # before the timings it is asked to pause too
                self.close()
                self._before_upload()
                return
        elif event.kind == "fleet":
            self._view.nodes, self._view.waiting = data.get("nodes", []), data.get("waiting", [])
        elif event.kind == "note":
            self._view.failures.append(str(data.get("text", "")))
        if urgent or time.monotonic() > self._count_at:
            self._count()
        self._rows_done()
        self._screen.show(self._view, urgent=urgent)
        self._snapshot.save(self._view)

    def _after_the_table(self, event: Event) -> None:
        """How the upload goes on, a line each time: what the sweep came to is on the screen already."""
        if event.kind == "note":
            say(event.data.get("text", ""))
        elif event.kind == "upload" and event.data.get("waiting"):
            say(f"uploading {event.data['waiting']} to MLflow; Ctrl-C leaves it to the background")

    def close(self) -> None:
        """Ends the display."""
        if not self._closed:
            self._closed = True
            self._count()
            self._rows_done(at_once=True)
            self._screen.show(self._view, urgent=True)
            self._screen.close()
            self._snapshot.remove()

    def _running(self, data: dict[str, Any]) -> None:
        key = str(data.get("key"))
        known = self._view.running.setdefault(key, {"what": self._what(key)})
        known.update({name: data[name] for name in ("step", "total_steps", "loss", "epoch") if name in data})
        if data.get("total_steps"):
            self._pace.stepped(key, data.get("step", 0) / data["total_steps"])

    def _trial(self, data: dict[str, Any]) -> bool:
        """True if the trial has failed or diverged, which is told at once."""
        key, state = str(data.get("key")), str(data.get("state", ""))
        if state in ("LEASED", "RUNNING"):
            self._view.running.setdefault(key, {"what": self._what(key)})
            return False
        self._view.running.pop(key, None)
        if state in TERMINAL:
            row = self._pace.ended(key, state, data.get("wall_s"))
            self._unsaid += [row] if row else []
        else:
            self._pace.lost(key)
        if state in ("SUCCEEDED", "CANCELLED", "PENDING", ""):
            return False
        reason = str(data.get("reason") or "").strip().splitlines()
        self._view.failures.append(f"{self._pace.name(key)} {self._what(key)}: {state}" + (f": {reason[0]}" if reason else ""))
        return True

    def _what(self, key: str) -> str:
        return self._pace.label(key)

    def _count(self) -> None:
        begun = time.monotonic()
        row = self._ledger.sweep(self._view.sweep)
        self._view.state = row.state
        self._view.count(figures(row), row.counts.get("cached", 0))
        if self._view.state == "RUNNING":
            self._view.eta_s = self._pace.left_s(len(self._view.running))
            self._view.phase = (
                f"then about {self._n_measures} measurements" if self._n_measures and self._view.done < self._view.total else ""
            )
        self._count_at = time.monotonic() + max(_COUNT_EVERY_S, (time.monotonic() - begun) / _COUNT_SHARE)

    def _rows_done(self, *, at_once: bool = False) -> None:
        """Tells of the rows that are complete, at most once in some seconds: of the last one what it reached."""
        if not self._unsaid or not (at_once or time.monotonic() - self._row_at >= _ROW_EVERY_S):
            return
        rows, self._unsaid, self._row_at = self._unsaid, [], time.monotonic()
        more = f"; {len(rows) - 1} more row{'s' if len(rows) > 2 else ''} ended before it" if len(rows) > 1 else ""
        self._view.finished.append(f"{rows[-1].label}: {self._reached(rows[-1])}{more}")

    def _reached(self, row: Row) -> str:
        """``acc 0.912 [0.905, 0.919] (n=5)``: mean, lowest and highest."""
        try:
            found = self._ledger.test_figures(row.keys)
        except IntegrityError as error:  # a line of progress ends no sweep
            return f"{error.what}; sparsefleet resume runs that trial again"
        if not found:
            return f"none of {len(row.keys)} trials succeeded"
        failed = f", {len(row.keys) - len(found)} without" if len(found) < len(row.keys) else ""
        spread = f" [{min(found):.3f}, {max(found):.3f}]" if len(found) > 1 else ""
        return f"test {sum(found) / len(found):.3f}{spread} (n={len(found)}{failed})"
