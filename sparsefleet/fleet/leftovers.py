"""What a trial leaves behind: files in shared memory, which outlive every process, and what its own process still held at its end."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress

from sparsefleet.fleet.processes import SHARED, remove_unused, shared_files

_FEW = 8
"""Open files that a library may keep, e.g. of its threads and devices."""


class SharedMemory:
    """Files in shared memory that the processes of one trial were seen to use; nobody could tell afterwards whose they were.

    Looking into a process costs it a moment, so it is done only after something has been made or removed there.
    """

    def __init__(self) -> None:
        self._since = time.time() - 1.0  # the clock of a file system is a tick behind
        self._changed = _changed()
        self._seen: set[str] = set()

    def look(self, pids: Iterable[int]) -> None:
        """These belong to the trial and live."""
        changed = _changed()
        if changed != self._changed:
            self._changed = changed
            self._seen |= shared_files(pids)

    def take(self, told: bytes) -> None:
        """What the trial's own process said of itself at its end, as JSON."""
        with suppress(ValueError):
            names = json.loads(told)
            self._seen |= {name for name in names if isinstance(name, str) and os.path.dirname(name) + "/" == SHARED}

    def remove(self) -> int:
        """Remove what is left of them once the trial's processes are gone; how many files that were."""
        return remove_unused(self._seen, self._since)


def _changed() -> int:
    try:
        return os.stat(SHARED).st_mtime_ns
    except OSError:
        return 0


class Held:
    """Threads and open files of this process when it was made, and what has come to them since."""

    def __init__(self) -> None:
        self._threads, self._files = _threads(), _n_files()

    def warnings(self) -> list[str]:
        """A sentence for each kind that has grown."""
        new = sorted(_threads() - self._threads)
        n_files = _n_files() - self._files
        told = [f"{len(new)} threads left behind, and ended with the trial's process: {', '.join(new[:3])}"] if new else []
        return [*told, *([f"{n_files} files left open, and closed with the trial's process"] if n_files > _FEW else [])]


def _threads() -> set[str]:
    return {f"{thread.name} ({thread.ident})" for thread in threading.enumerate()}


def _n_files() -> int:
    return len(os.listdir("/proc/self/fd"))
