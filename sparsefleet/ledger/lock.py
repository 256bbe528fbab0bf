"""One driver per sweep: a lock that the kernel frees when its holder dies."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

from sparsefleet.errors import SweepLocked


def lock_path(home: Path, sweep: str) -> Path:
    """The sweep's lock file."""
    return home / "locks" / f"{sweep}.lock"


def is_held(home: Path, sweep: str) -> bool:
    """True if a live process drives the sweep."""
    try:
        fd = os.open(lock_path(home, sweep), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def holder(home: Path, sweep: str) -> int | None:
    """The process that drives the sweep; None if none does, or it has only just taken the lock."""
    if not is_held(home, sweep):
        return None
    told = lock_path(home, sweep).read_text().strip()
    return int(told) if told.isdecimal() else None


class SweepLock:
    """The exclusive right to drive a sweep, held until ``release`` or the process's death.

    Raises:
        SweepLocked: on entering, if another process holds it.
    """

    def __init__(self, home: Path, sweep: str) -> None:
        self.path = lock_path(home, sweep)
        self.sweep = sweep
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock now or raise."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for wait_s in (0.02, 0.05, 0.1, None):  # is_held of a reader takes it for some microseconds
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if wait_s is None:
                    holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
                    os.close(fd)
                    raise SweepLocked(
                        f"sweep {self.sweep!r} is being driven by process {holder}", fix=f"sparsefleet watch {self.sweep}"
                    ) from None
                time.sleep(wait_s)
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        self._fd = fd

    def release(self) -> None:
        """Give it back; harmless when it is not held."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> SweepLock:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()
