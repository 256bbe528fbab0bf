"""A driver's events, turned into a view."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsefleet.cli.labels import trial_label
from sparsefleet.cli.progress import Snapshot, View, screen
from sparsefleet.cli.sweeps import figures
from sparsefleet.ledger.rows import LIVE_SWEEP

if TYPE_CHECKING:
    from sparsefleet.fleet.events import Event
    from sparsefleet.ledger.ledger import Ledger
    from sparsefleet.ledger.rows import SweepRow

_COUNT_EVERY_S = 0.5


class Feed:
    """Shows a sweep while this process drives it. The counts are the ledger's, the steps and losses the events'."""

    def __init__(self, home: Path, row: SweepRow, ledger: Ledger, before_upload: Callable[[], None]) -> None:
        self._ledger = ledger
        self._names = {t.key: t for t in ledger.trials(row.sweep, with_record=False)}
        self._view = View(row.sweep)
        self._snapshot = Snapshot(home, row.sweep)
        self._counted = 0.0
        self._count()
        self._screen = screen()
        self._closed = False
        self._before_upload: Callable[[], None] | None = before_upload

    def take(self, event: Event) -> None:
        """One event."""
        data = event.data
        urgent = event.kind in ("sweep", "note")
        if event.kind == "progress":
            self._running(data)
        elif event.kind == "trial":
            urgent = self._trial(data)
        elif event.kind == "measure":
            self._view.phase = _phase("measuring again" if data.get("again") else "measuring", data)
        elif event.kind == "upload":
            self._publish()
            self._view.phase = f"uploading {data['waiting']} to MLflow" if data.get("waiting") else ""
        elif event.kind == "note":
            self._view.failures.append(str(data.get("text", "")))
        if urgent or time.monotonic() - self._counted > _COUNT_EVERY_S:
            self._count()
        self._screen.show(self._view, urgent=urgent)
        self._snapshot.save(self._view)

    def _publish(self) -> None:
        """Once, when the sweep has ended and the uploader is about to be asked to finish; before the timings it is asked to pause too."""
        if self._ledger.sweep(self._view.sweep).state in LIVE_SWEEP:
            return
        publish, self._before_upload = self._before_upload, None
        try:
            if publish:
                publish()
        except Exception as error:  # noqa: BLE001  the sweep's result does not depend on MLflow's note
            self._view.failures.append(f"the table is not in MLflow: {type(error).__name__}: {error}")

    def close(self) -> None:
        """Ends the display."""
        if not self._closed:
            self._closed = True
            self._count()
            self._screen.show(self._view, urgent=True)
            self._screen.close()
            self._snapshot.remove()

    def _running(self, data: dict[str, Any]) -> None:
        key = str(data.get("key"))
        known = self._view.running.setdefault(key, {"what": self._what(key)})
        known.update({name: data[name] for name in ("step", "total_steps", "loss", "epoch") if name in data})

    def _trial(self, data: dict[str, Any]) -> bool:
        """True if the trial has failed or diverged, which is told at once."""
        key, state = str(data.get("key")), str(data.get("state", ""))
        if state in ("LEASED", "RUNNING"):
            self._view.running.setdefault(key, {"what": self._what(key)})
            return False
        self._view.running.pop(key, None)
        if state in ("SUCCEEDED", "CANCELLED", "PENDING", ""):
            return False
        reason = str(data.get("reason") or "").strip().splitlines()
        spec_id = self._names[key].spec_id if key in self._names else key[:12]
        self._view.failures.append(f"{spec_id} {self._what(key)}: {state}" + (f": {reason[0]}" if reason else ""))
        return True

    def _what(self, key: str) -> str:
        return trial_label(self._names[key].spec) if key in self._names else key[:12]

    def _count(self) -> None:
        self._counted = time.monotonic()
        row = self._ledger.sweep(self._view.sweep)
        self._view.state = row.state
        self._view.count(figures(row), row.counts.get("cached", 0))


def _phase(word: str, data: dict[str, Any]) -> str:
    done, total = data.get("done"), data.get("total")
    return f"{word} {done}/{total}" if total else word
