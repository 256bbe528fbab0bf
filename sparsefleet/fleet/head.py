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
_CONNECT_S = 5.0
_LOOK_S = 2.0
_EVERY_S = 0.5
_STOPPED_S = 15.0
"""No look takes so long."""
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
"""How a client of gRPC begins; the server answers with settings of its own, whoever it is talking to."""


def knock(address: str, limit_s: float = SILENT_S) -> None:
    """Return if somebody answers at ``HOST:PORT``. The kernel takes connections for a process that is frozen; such a one says nothing.

    Other forms of an address are Ray's to judge.

    Raises:
        OSError: nobody listens there, or nobody says anything within the limit.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "//" in address:
        return
    with socket.create_connection((host.strip("[]"), int(port)), timeout=min(_CONNECT_S, limit_s)) as link:
        link.settimeout(limit_s)
        try:
            link.sendall(_PREFACE)
            link.recv(1)
        except ConnectionError:  # closed: there is somebody
            return
        except TimeoutError as error:
            raise TimeoutError(f"it takes connections and has said nothing for {limit_s:.0f} s: frozen, or short of CPU") from error


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
        self._address, self._on_lost = address, on_lost
        self._ended = threading.Event()
        self.lost: str | None = None

    def run(self) -> None:
        """The thread."""
        heard = listening = now = time.monotonic()
        while not self._ended.wait(_EVERY_S):
            before, problem = now, self._look()
            now = time.monotonic()
            if now - before > _STOPPED_S:  # it was this process that stood still
                heard = listening = now
            heard = now if problem is None else heard
            listening = listening if problem == "refused" else now
            if now - listening > GONE_S or now - heard > SILENT_S:
                self.lost = f"nobody listens at {self._address} any more" if problem == "refused" else f"{self._address} does not answer"
                self._on_lost(self.lost)
                return

    def _look(self) -> str | None:
        try:
            knock(self._address, _LOOK_S)
            return None
        except ConnectionRefusedError:
            return "refused"
        except OSError:
            return "silent"

    def stop(self) -> None:
        """End it."""
        self._ended.set()
