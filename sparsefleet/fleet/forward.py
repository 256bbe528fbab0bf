"""What a trial prints on a node that does not share the driver's home: read there while it runs, and appended to the log at home."""

from __future__ import annotations

import codecs
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsefleet.redact import redacted

EVERY_S = 1.0
MOST_AT_ONCE = 64 << 10
"""Bytes a second: a trial that prints more is followed later, up to the total."""
MOST_IN_ALL = 4 << 20
"""Bytes of one attempt that are forwarded while it runs; the whole log is an artifact of a trial that ends well."""
CUT = "\n[the rest stays on its node until the trial has ended]\n"


class Printed:
    """Reads a growing log; what is new since the last time, at most once a second."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset, self._next = 0, 0.0
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")  # a piece may end inside of a letter

    def new(self, *, last: bool = False) -> Iterator[dict[str, Any]]:
        """Messages of kind ``output`` with ``text``, and ``cut`` True on the last one if there was too much.

        Args:
            last: the trial has ended: everything up to the limit, now.
        """
        now = time.monotonic()
        if (now < self._next and not last) or self._offset >= MOST_IN_ALL:
            return
        self._next = now + EVERY_S
        while self._offset < MOST_IN_ALL:
            piece = self._read(min(MOST_AT_ONCE, MOST_IN_ALL - self._offset))
            if not piece:
                return
            self._offset += len(piece)
            cut = self._offset >= MOST_IN_ALL and self._size() > MOST_IN_ALL
            yield {"kind": "output", "text": self._decoder.decode(piece) + (CUT if cut else ""), "cut": cut}
            if not last:
                return

    def _read(self, n: int) -> bytes:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                return file.read(n)
        except FileNotFoundError:  # it has not begun
            return b""

    def _size(self) -> int:
        return self._path.stat().st_size


def append(path: Path, text: str) -> None:
    """Add what was forwarded to the log at home, which only its owner may read."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(redacted(text))  # its node has taken out what its own environment knows
