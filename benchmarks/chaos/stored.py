"""The ledger's packed texts, read without the product: a fault in how it reads must not hide one in how it writes."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Iterator
from typing import Any


class Stored:
    """What lies packed in a ledger's file."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._shared: dict[int, bytes] = {}

    def text(self, body: bytes | None) -> str | None:
        """The text of packed bytes; None if they, or their dictionary, are not whole."""
        if body is None or len(body) < 7 or zlib.crc32(body[:-4]) != int.from_bytes(body[-4:], "big"):
            return None
        number = int.from_bytes(body[:3], "big")
        try:
            return zlib.decompressobj(-15, zdict=self._of(number) if number else b"").decompress(body[3:-4]).decode()
        except (zlib.error, ValueError):
            return None

    def shared(self, number: int) -> str:
        """A shared text.

        Raises:
            ValueError: neither copy is what was stored.
        """
        return self._of(number).decode()

    def every_text(self) -> Iterator[str]:
        """Whatever is packed anywhere in the file."""
        columns = ("spec FROM trials", "body FROM records", "body FROM texts", "copy FROM texts")
        for column in columns:
            yield from filter(None, (self.text(body) for (body,) in self._db.execute(f"SELECT {column}").fetchall()))

    def _of(self, number: int) -> bytes:
        if number not in self._shared:
            digest, *copies = self._db.execute("SELECT sha256, body, copy FROM texts WHERE id=?", (number,)).fetchone()
            right = [text for text in map(self.text, copies) if text is not None and hashlib.sha256(text.encode()).hexdigest() == digest]
            if not right:
                raise ValueError(f"text {number} is damaged")
            self._shared[number] = right[0].encode()
        return self._shared[number]


def records(db: sqlite3.Connection) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every trial's key and its record, as far as it can be read."""
    stored = Stored(db)
    for key, body in db.execute("SELECT t.key, r.body FROM trials t JOIN records r ON r.id = t.record ORDER BY t.key").fetchall():
        text = stored.text(body)
        if text is not None:
            yield key, json.loads(text)
