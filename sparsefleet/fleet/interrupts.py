"""Who asks the driver to stop, and how urgently: Ctrl-C once or twice, a signal, or ``sparsefleet cancel``."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from sparsefleet.fleet.processes import descendants
from sparsefleet.ledger.lock import lock_path

_POLL_S = 0.25
_SOON_S = 6.0
_START_S = 2.0
_NOW_S = 0.8
_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_EXIT_CODE = 130


def cancel_path(home: Path, sweep: str) -> Path:
    """The file whose presence asks the sweep's driver to cancel."""
    return lock_path(home, sweep).with_suffix(".cancel")


class Interrupts:
    """While entered, SIGINT and SIGTERM are counted instead of raised (in the main thread; elsewhere they stay with their owner).

    They are counted by a thread of its own, which hears them although the main thread waits somewhere in Ray. A driver that has not stopped
    some seconds after the first, or a moment after the second, is ended by that thread, with every process below it: the ledger is safe from
    any death, and so ``resume`` goes on.

    Args:
        spared: process ids below this one that go on by themselves: the uploader.

    Attributes:
        n_signals: 1 asks to drain, 2 to stop now.
        is_starting: nothing runs yet that could be drained, so that one signal is enough to leave soon, whatever Ray is waiting for.
    """

    def __init__(self, home: Path, sweep: str, spared: Callable[[], Sequence[int]] = tuple) -> None:
        self.n_signals = 0
        self.is_starting = True
        self._sweep = sweep
        self._path = cancel_path(home, sweep)
        self._spared = spared
        self._cancelled = False
        self._look_at = 0.0
        self._before: dict[int, Any] = {}
        self._listener: threading.Thread | None = None

    def __enter__(self) -> Interrupts:
        self._path.unlink(missing_ok=True)
        if threading.current_thread() is threading.main_thread():
            self._read, self._write = os.pipe()
            os.set_blocking(self._write, False)
            self._before = {number: signal.getsignal(number) for number in _NUMBERS}
            self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            self.take_signals()
            self._listener = threading.Thread(target=self._listen, name="interrupts", daemon=True)
            self._listener.start()
        return self

    def take_signals(self) -> None:
        """Once more after ``ray.init``, which takes SIGTERM for itself."""
        for number in self._before:
            signal.signal(number, _heard_elsewhere)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._listener:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._wakeup)
            os.write(self._write, b"\0")
            self._listener.join()
            os.close(self._read)
            os.close(self._write)
        self._path.unlink(missing_ok=True)

    def _listen(self) -> None:
        deadline: float | None = None
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._read], [], [], left)[0]:
                self._leave()
            heard = os.read(self._read, 64)
            if b"\0" in heard:
                return
            for _ in [number for number in heard if number in _NUMBERS]:
                self.n_signals += 1
                limit = time.monotonic() + (_NOW_S if self.n_signals > 1 else _START_S if self.is_starting else _SOON_S)
                deadline = limit if deadline is None else min(deadline, limit)

    def _leave(self) -> None:
        """End this process and those below it; what it leaves in the ledger reads as interrupted."""
        for _ in range(2):  # a process may be born between the look and the kill
            spared = {below for pid in self._spared() for below in (pid, *descendants(pid))}
            for pid in set(descendants(os.getpid())) - spared:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        if sys.stderr is not None and sys.stderr.isatty():
            os.write(2, b"\x1b[?25h\n")  # the cursor, which a progress display hides
        os.write(2, f"interrupted\nnext: sparsefleet resume {self._sweep}\n".encode())
        os._exit(_EXIT_CODE)

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


def _heard_elsewhere(number: int, frame: FrameType | None) -> None:
    """The listener's thread has it from the pipe."""
