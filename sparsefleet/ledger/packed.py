"""Texts as the ledger keeps them: small, and never another text than was stored.

A packed text is three bytes that name the dictionary (0: none), a raw deflate stream, and the CRC-32 of all of that. The dictionary is a text
that is like it: of the trials of a sweep, most of a record and nearly all of a spec is the same. What many rows share, dictionaries among it,
lies in ``texts``: once for all, behind its SHA-256, and in two copies, so that a bit that flips in one of them costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from sparsefleet.errors import IntegrityError

_HEAD, _CHECK = 3, 4
_WINDOW = 32_000
"""Of a dictionary deflate sees the last 32 KiB only."""
_FEW = 4
"""So many numbers of a longer list of measured ones stay in a dictionary: no other trial has the others."""


class Altered(Exception):
    """A packed text is not what was stored; the message says which part."""


def dump(value: Any) -> str:
    """Compact JSON; refuses NaN."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def sha256(text: str | bytes) -> str:
    """Of the UTF-8 bytes."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def record_kind(sweep: str, record: Mapping[str, Any]) -> str:
    """What records of a sweep that are much alike have in common: the plugins that took part."""
    return f"record {sweep} {sha256(' '.join(sorted(record.get('code') or ())))[:16]}"


def spec_kind(sweep: str) -> str:
    """What the specs of a sweep have in common."""
    return f"spec {sweep}"


class Texts:
    """The shared texts of one connection, and what is packed with them.

    ``record_text(key, body, digest)`` is known to SQL as soon as this is made: a record's text, NULL where there is none or an altered one.
    ``told`` knows which.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self._texts: dict[int, bytes] = {}
        self._numbers: dict[str, int] = {}
        self._dictionaries: dict[str, int] = {}
        self._refused: dict[str, IntegrityError] = {}
        db.create_function("record_text", 3, self._record_text, deterministic=True)

    def forget(self) -> None:
        """What was entered in a transaction that was rolled back is not there."""
        self._texts.clear()
        self._numbers.clear()
        self._dictionaries.clear()

    def number(self, text: str) -> int:
        """The number of a shared text, which is entered if it is new, and put right if it was damaged. Inside a transaction."""
        if text not in self._numbers:
            digest, body = sha256(text), _packed(text.encode(), 0, b"")
            row = self.db.execute("SELECT id, body, copy FROM texts WHERE sha256=?", (digest,)).fetchone()
            if row is None:
                done = self.db.execute("INSERT INTO texts (sha256, body, copy) VALUES (?,?,?)", (digest, body, body))
                self._numbers[text] = int(done.lastrowid or 0)
            else:
                if row["body"] != row["copy"] or _read(row["body"]) != text.encode():
                    self.db.execute("UPDATE texts SET body=?, copy=? WHERE id=?", (body, body, row["id"]))
                self._numbers[text] = row["id"]
        return self._numbers[text]

    def text(self, number: int) -> bytes:
        """A shared text.

        Raises:
            Altered: neither copy is what was stored.
        """
        if number not in self._texts:
            row = self.db.execute("SELECT sha256, body, copy FROM texts WHERE id=?", (number,)).fetchone()
            found = [text for text in map(_read, (row["body"], row["copy"])) if text is not None] if row else []
            right = next((text for text in found if sha256(text) == row["sha256"]), None)
            if right is None and len(found) == 2 and found[0] == found[1]:
                right = found[0]  # it is the digest that was altered
            if right is None:
                raise Altered(f"text {number}, which it shares with others, is {'damaged' if row else 'gone'}")
            self._texts[number] = right
        return self._texts[number]

    def pack(self, text: str, kind: str, pattern: Callable[[], str] | None = None) -> bytes:
        """The text, packed with the dictionary of its kind. Inside a transaction.

        Args:
            pattern: gives the kind's dictionary if there is none, or if it was damaged; None: the text itself is it.
        """
        number = self._dictionary(kind)
        if number is None:
            number = self.number((pattern() if pattern else text)[-_WINDOW:])
            self.db.execute("INSERT OR REPLACE INTO dictionaries VALUES (?,?)", (kind, number))
            self._dictionaries[kind] = number
        return _packed(text.encode(), number, self.text(number))

    def _dictionary(self, kind: str) -> int | None:
        """Its number, if it can be read."""
        if kind not in self._dictionaries:
            row = self.db.execute("SELECT text FROM dictionaries WHERE kind=?", (kind,)).fetchone()
            if row is None:
                return None
            try:
                self.text(row["text"])
            except Altered:
                return None
            self._dictionaries[kind] = row["text"]
        return self._dictionaries[kind]

    def unpack(self, body: bytes) -> bytes:
        """The text that was packed.

        Raises:
            Altered: the bytes, or the dictionary, are not what was stored.
        """
        number = int.from_bytes(body[:_HEAD], "big")
        return _unpacked(body, self.text(number) if number else b"")

    def record(self, key: str, body: bytes | None, digest: str) -> bytes:
        """A trial's record, as it was committed.

        Raises:
            IntegrityError: it is another one, or gone.
        """
        try:
            if body is None:
                raise Altered("its row is gone")
            text = self.unpack(body)
            if sha256(text) != digest:
                raise Altered("it is another text")
        except Altered as error:
            raise IntegrityError(
                f"the record of trial {key[:12]} does not match its digest",
                cause=str(error),
                fix="sparsefleet resume SWEEP sets it aside and runs the trial again",
            ) from error
        return text

    def _record_text(self, key: str, body: bytes | None, digest: str | None) -> str | None:
        if digest is None:
            return None
        try:
            return self.record(key, body, digest).decode()
        except IntegrityError as error:  # raised here, SQLite would stop and say no more than that something was
            self._refused[key] = error
            return None

    def told(self, key: str, text: str | None) -> str:
        """What a query took out of ``record_text`` for a trial that has a record.

        Raises:
            IntegrityError: the record is not what was committed.
        """
        if text is None:
            raise self._refused.pop(key)
        return text


def pattern_of(record: Mapping[str, Any]) -> str:
    """What another record of the same kind is likely to repeat: all but the long lists of measured numbers."""
    return dump(_shortened(record))


def _shortened(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _shortened(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_shortened(one) for one in (value[:_FEW] if len(value) > _FEW and isinstance(value[0], float) else value)]
    return value


def _packed(text: bytes, number: int, dictionary: bytes) -> bytes:
    made = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, dictionary)
    body = number.to_bytes(_HEAD, "big") + made.compress(text) + made.flush()
    return body + zlib.crc32(body).to_bytes(_CHECK, "big")


def _unpacked(body: bytes, dictionary: bytes) -> bytes:
    if len(body) <= _HEAD + _CHECK or zlib.crc32(memoryview(body)[:-_CHECK]) != int.from_bytes(body[-_CHECK:], "big"):
        raise Altered("its bytes are not those that were stored")
    try:
        return zlib.decompressobj(-15, zdict=dictionary).decompress(body[_HEAD:-_CHECK])
    except zlib.error as error:
        raise Altered(str(error)) from error


def _read(body: bytes) -> bytes | None:
    """The text of a body without a dictionary; None if it was altered."""
    try:
        return _unpacked(body, b"")
    except Altered:
        return None
