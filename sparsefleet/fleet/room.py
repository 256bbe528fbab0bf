"""Whether new work may start: there is room on the disk, and the nodes can keep what they make."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sparsefleet.errors import BackendUnreachable, SparsefleetError
from sparsefleet.fleet.events import Event
from sparsefleet.space import min_free_mib, shortage

_LOOK_EVERY_S = 1.0
_MOST_REFUSALS = 3
_PAUSE_S = 2.0


class Room:
    """Looked at before every lease. What runs comes to its end; what it takes is in the limit.

    Args:
        places: folders of this machine that the sweep writes to.
        work: what does not start meanwhile.
    """

    def __init__(self, places: Sequence[Path], emit: Callable[[Event], None], work: str = "trials") -> None:
        self._places, self._emit, self._work = places, emit, work
        self._needed_mib = min_free_mib()
        self._look_at = 0.0
        self._refusals = 0
        self._told = ""
        self.error: SparsefleetError | None = None

    def closed(self) -> bool:
        """True if nothing may be leased now; ``error`` then says why, unless it is only a moment's pause."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_EVERY_S
            if self._refusals < _MOST_REFUSALS:
                self.error = shortage(self._places, self._needed_mib)
            if self.error is not None:
                self._tell(self.error.what)
        return self.error is not None or (self._refusals > 0 and now < self._pause_until)

    def refused(self, reason: str) -> None:
        """A node could not run a trial, for no fault of the trial: its disk is full, or the store is away."""
        self._refusals += 1
        self._pause_until = time.monotonic() + _PAUSE_S
        self._tell(reason.splitlines()[0])
        if self._refusals >= _MOST_REFUSALS and self.error is None:
            what, *more = reason.splitlines()
            causes = [line.strip().removeprefix("cause:").strip() for line in more if line.strip().startswith("cause:")]
            self.error = BackendUnreachable(
                what, cause=causes[0] if causes else None, fix="see to it, then: sparsefleet resume; nothing that has ended is lost"
            )

    _pause_until = 0.0

    def fine(self) -> None:
        """A trial's result was kept."""
        self._refusals = 0

    def _tell(self, text: str) -> None:
        if text != self._told:
            self._told = text
            self._emit(Event("note", {"text": f"no new {self._work}: {text}"}))
