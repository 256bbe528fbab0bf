"""One stream that carries two, and how they ended: what a relayed verb prints, through the log of a Ray Job.

Ray writes a job's stdout and stderr, and lines of its own, into one file. So each piece that a verb prints becomes one line of ASCII,
``sf1 [number, "o"|"e", text]``, and its end ``sf1 [number, "x", code]``. Every other line is Ray's. Imports neither ray nor torch.
"""

from __future__ import annotations

import codecs
import json
import os
import threading
from collections import deque
from typing import IO, Any, Literal

Stream = Literal["o", "e"]
_MARK = "sf1 "
_PIECE_BYTES = 16 << 10
_NOISE_LINES = 20


class Writer:
    """Writes frames to a file descriptor, each with one call, so that no other writer of the same file comes in between."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._number = 0
        self._turn = threading.Lock()

    def copy(self, stream: Stream, source: IO[bytes]) -> None:
        """Everything that comes from ``source``, until its end; a character that is cut in two is put together."""
        decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        while piece := os.read(source.fileno(), _PIECE_BYTES):
            self._say(stream, decoder.decode(piece))
        self._say(stream, decoder.decode(b"", final=True))

    def end(self, code: int) -> None:
        """How the verb ended; the last frame."""
        self._write("x", code)

    def _say(self, stream: Stream, text: str) -> None:
        if text:
            self._write(stream, text)

    def _write(self, kind: str, body: str | int) -> None:
        with self._turn:
            left = memoryview(f"{_MARK}{json.dumps([self._number, kind, body])}\n".encode("ascii"))
            self._number += 1
            while left:
                left = left[os.write(self._fd, left) :]


class Reader:
    """Takes a job's log in any pieces, also once more from its beginning, and gives each frame once.

    Attributes:
        exit_code: of the verb; None before its end.
        noise: the last lines that are no frames: what Ray says, or the shell.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self.noise: deque[str] = deque(maxlen=_NOISE_LINES)
        self._rest = ""
        self._next = 0

    def restart(self) -> None:
        """What comes now begins at the beginning of the log again."""
        self._rest = ""
        self.noise.clear()

    def take(self, text: str) -> list[tuple[Stream, str]]:
        """What is new in the next piece of the log, in order."""
        *lines, self._rest = (self._rest + text).split("\n")
        found: list[tuple[Stream, str]] = []
        for line in lines:
            frame = _frame(line)
            if frame is None:
                self.noise.append(line)
                continue
            number, kind, body = frame
            if number < self._next:
                continue
            self._next = number + 1
            if kind == "x":
                self.exit_code = int(body)
            else:
                found.append((kind, str(body)))
        return found


def _frame(line: str) -> tuple[int, Any, Any] | None:
    if not line.startswith(_MARK):
        return None
    try:
        number, kind, body = json.loads(line[len(_MARK) :])
    except ValueError:
        return None
    return (number, kind, body) if isinstance(number, int) and kind in ("o", "e", "x") else None
