"""What a trial prints, on its way to its log: secrets are taken out here, outside of the process that a plugin may hang or kill."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from sparsefleet.redact import longest_secret, redacted

_CHUNK = 1 << 16
_CHUNKS_AT_ONCE = 16
_LONGEST_LINE = 1 << 16
"""A line that is longer goes out in pieces, each with enough of its end kept back for a secret to be seen whole."""


class LogPipe:
    """The log of one attempt, private, and the pipe that leads to it; complete lines are in the file at once.

    Attributes:
        read: to be watched; non-blocking.
        write: the child's stdout and stderr; closed here by ``parted`` once the child has it.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._rest = b""
        self.read, self.write = os.pipe()
        os.set_blocking(self.read, False)

    def parted(self) -> None:
        """The child has been forked: its end is its own."""
        os.close(self.write)

    def take(self) -> bool:
        """Writes what can be read now, but not without end; False at the end of the pipe."""
        for _ in range(_CHUNKS_AT_ONCE):
            try:
                piece = os.read(self.read, _CHUNK)
            except BlockingIOError:
                return True
            if not piece:
                return False
            self._keep(piece)
        return True

    def close(self) -> None:
        """Writes the rest. Whoever could still print is gone by now."""
        self.take()
        self._write(self._rest)
        for fd in (self.read, self._file):
            os.close(fd)

    def _keep(self, piece: bytes) -> None:
        text = self._rest + piece
        end = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
        if not end and len(text) > _LONGEST_LINE:
            end = len(text) - 4 * longest_secret()  # as many bytes as a character can have
        self._write(text[: max(0, end)])
        self._rest = text[max(0, end) :]

    def _write(self, text: bytes) -> None:
        if text:
            view = memoryview(redacted(text.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape"))
            with suppress(OSError):  # a full disk costs the log, not the trial
                while view:
                    view = view[os.write(self._file, view) :]
