"""The uploader as the driver sees it: started beside the trials, asked to finish at the end; never a reason for a sweep to stop."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sparsefleet.fleet.events import Event
from sparsefleet.fleet.interrupts import Interrupts
from sparsefleet.ledger import Ledger

_FLUSH_S = 60.0
_SETTLE_S = 10.0
_POLL_S = 0.25
_TELL_EVERY_S = 5.0
_MOST_LOOKED_AT = 10_000


class Uploader:
    """Carries what waits for MLflow beside the trials; ``settle`` and ``finish`` wait for it, within a limit."""

    def __init__(self, home: Path, uri: str | None, emit: Callable[[Event], None]) -> None:
        self._home, self._uri, self._emit = home, uri, emit
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, once; a failure is told and otherwise ignored: the outbox keeps what it did not send."""
        if self._process is not None:
            return
        try:
            from sparsefleet.track.upload import spawn

            self._process = spawn(self._home, self._uri)
        except (ImportError, OSError) as error:
            self._emit(Event("note", {"text": f"nothing is uploaded to MLflow: {error}"}))

    def pids(self) -> Sequence[int]:
        """Of its process, while there is one: nobody needs to end it."""
        process = self._process
        return () if process is None else (process.pid,)

    def settle(self, ledger: Ledger, stopping: Callable[[], bool]) -> None:
        """Wait until it has nothing to do, as long as it gets on: its work would disturb a timing."""
        waiting, until = ledger.outbox_size(), time.monotonic() + _SETTLE_S
        while self._process is not None and self._process.poll() is None and waiting and time.monotonic() < until and not stopping():
            self._emit(Event("upload", {"waiting": waiting}))
            time.sleep(_POLL_S)
            left = ledger.outbox_size()
            if left != waiting:
                waiting, until = left, time.monotonic() + _SETTLE_S

    def finish(self, ledger: Ledger, interrupts: Interrupts, limit_s: float = _FLUSH_S) -> None:
        """Ask it to send the rest and end, and wait for that; it goes on by itself after ``limit_s``, after Ctrl-C, or if MLflow is away."""
        if self._process is None:
            return
        from sparsefleet.track.upload import finish, is_away

        n_signals, said = interrupts.n_signals, time.monotonic()
        self._emit(Event("upload", {"waiting": _awaited(ledger)}))

        def enough() -> bool:
            nonlocal said
            left = _awaited(ledger)
            if left and time.monotonic() > said + _TELL_EVERY_S:
                said = time.monotonic()
                self._emit(Event("upload", {"waiting": left}))
            return not left or interrupts.n_signals > n_signals or is_away(self._home)

        finish(self._process, limit_s, enough)
        left = _awaited(ledger)
        if left:
            when = "as soon as it answers" if is_away(self._home) or self._process.poll() is not None else "in the background"
            self._emit(Event("note", {"text": f"{left} items wait for MLflow; they are sent {when}"}))
        else:
            self._emit(Event("upload", {"waiting": 0}))
        self._tell_of_pictures(ledger)
        self._process = None

    def _tell_of_pictures(self, ledger: Ledger) -> None:
        """Say that something goes on, what, and how not to have it."""
        if self._process is None or self._process.poll() is not None:
            return
        n_left = sum(n_pictured(ledger, item.sweep) for item in ledger.outbox(_MOST_LOOKED_AT) if item.kind == "pictures")
        if n_left:
            text = f"drawing the pictures of {n_left} runs for MLflow in the background; SPARSEFLEET_PICTURES=off switches it off"
            self._emit(Event("note", {"text": text}))


def n_pictured(ledger: Ledger, sweep: str) -> int:
    """How many runs of a sweep get pictures: its own and its first trials'."""
    from sparsefleet.track.pictures import DRAWN, MOST_TRIALS

    counts = ledger.sweep(sweep).counts
    return 1 + min(MOST_TRIALS, sum(counts.get(state, 0) for state in DRAWN))


def _awaited(ledger: Ledger) -> int:
    """What waits for MLflow, without pictures: nobody waits for those."""
    return ledger.outbox_size(without="pictures")
