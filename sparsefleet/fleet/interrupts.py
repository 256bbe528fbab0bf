"""Who asks the driver to stop, and how urgently: Ctrl-C once or twice, a signal, or ``sparsefleet cancel``."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from sparsefleet.ledger.lock import lock_path

_POLL_S = 0.25


def cancel_path(home: Path, sweep: str) -> Path:
    """The file whose presence asks the sweep's driver to cancel."""
    return lock_path(home, sweep).with_suffix(".cancel")


class Interrupts:
    """While entered, SIGINT and SIGTERM are counted instead of raised (in the main thread; elsewhere they stay with their owner).

    Attributes:
        n_signals: 1 asks to drain, 2 to stop now.
    """

    def __init__(self, home: Path, sweep: str) -> None:
        self.n_signals = 0
        self._path = cancel_path(home, sweep)
        self._cancelled = False
        self._look_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        self._path.unlink(missing_ok=True)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._count)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._path.unlink(missing_ok=True)

    def _count(self, number: int, frame: FrameType | None) -> None:
        self.n_signals += 1

    @property
    def cancelled(self) -> bool:
        """True once someone asked to cancel."""
        now = time.monotonic()
        if not self._cancelled and now >= self._look_at:
            self._look_at = now + _POLL_S
            self._cancelled = self._path.exists()
        return self._cancelled

    @property
    def stopping(self) -> bool:
        """True if no new work may start."""
        return self.n_signals > 0 or self.cancelled
