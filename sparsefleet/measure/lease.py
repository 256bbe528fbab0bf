"""The exclusive right to a device of this node while a timing is taken: also against other sweeps and other users of sparsefleet."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsefleet.errors import BackendUnreachable

LEASE_WAIT_S = 600.0
"""How long a measurement waits for another one to end: it takes minutes, and its time limit begins after that."""
_POLL_S = 0.1


@contextmanager
def device_lease(device: str, wait_s: float) -> Iterator[None]:
    """Held while entered; the kernel frees it when the process dies. A GPU's is named by its UUID, since two processes may number it differently.

    Raises:
        BackendUnreachable: someone else measured for longer than ``wait_s``.
    """
    name = re.sub(r"[^A-Za-z0-9]+", "-", _known_to_all(device))
    path = Path(tempfile.gettempdir()) / f"sparsefleet-measure-{name}.lock"
    fd = _open(path)
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BackendUnreachable(
                        f"{device} was being measured by someone else for {wait_s:.0f} s", cause=f"lock {path}"
                    ) from None
                time.sleep(_POLL_S)
        yield
    finally:
        os.close(fd)


def _known_to_all(device: str) -> str:
    if not device.startswith("cuda"):
        return device
    from sparsefleet.measure.gpu import uuid_of

    return uuid_of(device) or device


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)  # a lock needs no right to write
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
