"""Is the head of the cluster still there? Asked of its port by a thread of our own: Ray's calls hang for a minute and then end the process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

GONE_S = 3.0
"""Nobody listens at the port for so long: the head's process has ended."""
SILENT_S = 30.0
"""The port cannot be reached, or Ray has not answered, for so long: its machine is gone or frozen."""
_EVERY_S = 0.5


class HeadWatch(threading.Thread):
    """Looks at a port until stopped or until nobody is there any more.

    Attributes:
        lost: what happened to the head; None while it is there.

    Args:
        address: ``HOST:PORT`` of Ray's global control store.
        on_lost: called once, in this thread, with the same words.
    """

    def __init__(self, address: str, on_lost: Callable[[str], None] = lambda reason: None) -> None:
        super().__init__(daemon=True, name="head-watch")
        host, _, port = address.rpartition(":")
        self._place = (host.strip("[]"), int(port))
        self._address, self._on_lost = address, on_lost
        self._ended = threading.Event()
        self.lost: str | None = None

    def run(self) -> None:
        """The thread."""
        seen = time.monotonic()
        while not self._ended.wait(_EVERY_S):
            problem = self._look()
            now = time.monotonic()
            if problem is None:
                seen = now
            elif now - seen > (GONE_S if problem == "refused" else SILENT_S):
                self.lost = f"nobody listens at {self._address} any more" if problem == "refused" else f"{self._address} is out of reach"
                self._on_lost(self.lost)
                return

    def _look(self) -> str | None:
        try:
            with socket.create_connection(self._place, timeout=2.0):
                return None
        except ConnectionRefusedError:
            return "refused"
        except OSError:
            return "silent"

    def stop(self) -> None:
        """End it."""
        self._ended.set()
