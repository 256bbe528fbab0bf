"""Reads a grid file: YAML 1.2 core schema, every value with its line, and nothing that can surprise.

The stock resolvers are not used. ``no`` is text, ``1e-3`` is a number, ``010`` is ten, ``1:30`` and dates are text. Anchors, aliases, merge keys and tags
are refused, and so are duplicate keys, non-finite numbers and text that cannot be printed. The file is checked before it is read, and the event stream is
cut at 10,000 values and 20 levels, so that no file takes more than a second or more memory than it has bytes.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from sparsefleet.errors import InvalidGrid, UserError

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_NODES = 10_000
MAX_LINES = 50_000
MAX_LINE = 10_000

Key = tuple["str | int", ...]

_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NON_FINITE = re.compile(r"[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN")


def key_text(key: Key) -> str:
    """``("axes", "density", 2)`` as ``axes.density[2]``."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text


def quoted(value: Any, limit: int = 60) -> str:
    """``value`` for a message: escaped and cut."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


@dataclass
class Source:
    """A parsed file: plain values, where each one stands, and the problems found so far.

    Attributes:
        label: the file's name as messages show it.
        data: dicts, lists, text, numbers, booleans, None.
        lines: 1-based line of every value, by its key.
    """

    label: str
    text: str = ""
    data: Any = None
    lines: dict[Key, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)
    broken: int = 0
    """Problems that are a broken plugin's, not the file's."""

    def report(self, key: Key, message: str, line: int | None = None) -> None:
        """Adds a problem of the value at ``key``."""
        known = key
        while known and known not in self.lines:
            known = known[:-1]
        at = self.lines.get(known, 1) if line is None else line
        shown = key_text(key)
        problem = (at, f"{self.label}:{at} {shown}: {message}" if shown else f"{self.label}:{at} {message}")
        if problem not in self.problems:
            self.problems.append(problem)

    def raise_problems(self) -> None:
        """Ends the loading if there is any problem.

        Raises:
            InvalidGrid: with all of them, in the order of the file.
        """
        if self.problems:
            raise InvalidGrid([message for _, message in sorted(self.problems, key=lambda p: p[0])])


def read_text(path: Path) -> str:
    """The text of a grid file, without a byte-order mark.

    Raises:
        UserError: it is not there, not a regular file, too big or not UTF-8. A file that is no regular file is never read.
    """
    shown = quoted(str(path), 200)
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise UserError(f"no grid file {shown}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"grid file {shown} cannot be opened", cause=getattr(error, "strerror", None) or str(error)) from None
    try:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            kind = "a directory" if stat.S_ISDIR(facts.st_mode) else "not a regular file"
            raise UserError(f"grid file {shown} is {kind}")
        if facts.st_size > MAX_BYTES:
            raise UserError(f"grid file {shown} has {facts.st_size:,} bytes; at most {MAX_BYTES:,} are read")
        raw = b""
        while len(raw) <= MAX_BYTES and (part := os.read(handle, MAX_BYTES)):
            raw += part
    finally:
        os.close(handle)
    if len(raw) > MAX_BYTES:
        raise UserError(f"grid file {shown} grew beyond {MAX_BYTES:,} bytes while it was read")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line} is not UTF-8", cause=f"byte {raw[error.start]:#04x} at position {error.start}") from None


def parse(text: str, label: str) -> Source:
    """The values of a YAML text with their lines; syntax problems are in ``Source.problems``."""
    source = Source(label, text)
    lines = text.splitlines()
    if len(lines) > MAX_LINES:
        source.report((), f"has {len(lines):,} lines; at most {MAX_LINES:,} are read")
        return source
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE:
            source.report((), f"has {len(line):,} characters in one line; at most {MAX_LINE:,} are read", line=number)
            return source
    with contextlib.suppress(_Stop):
        _Reader(source).read(_events(text))
    return source


class _Stop(Exception):
    """Ends the reading; the problem is already reported."""


@dataclass
class _Open:
    """A collection that is being read."""

    key: Key
    value: Any
    pending: str | None = None
    """The key whose value comes next, in a mapping."""
    expects_key: bool = True


def _events(text: str) -> Iterator[Any]:
    from ruamel.yaml import YAML

    return iter(YAML(typ="safe", pure=True).parse(text))


class _Reader:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.stack: list[_Open] = []
        self.n_nodes = 0
        self.n_documents = 0
        self.line = 1

    def read(self, events: Iterator[Any]) -> None:
        from ruamel.yaml.error import YAMLError

        while True:
            try:
                event = next(events, None)
            except YAMLError as error:
                self._syntax(error)
            except (ValueError, OverflowError):  # an escape beyond Unicode
                self._stop("a text has an escape that is no character", self.line)
            if event is None:
                return
            self._take(event)

    def _stop(self, message: str, line: int | None = None) -> NoReturn:
        self.source.report(self.stack[-1].key if self.stack else (), message, line)
        raise _Stop

    def _syntax(self, error: Any) -> None:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).split("\n")[0]
        if mark is None:
            position = getattr(error, "position", 0)
            line = self.source.text[:position].count("\n") + 1 if isinstance(position, int) else 1
            raw = getattr(error, "character", None)
            shown = f": character {raw:#06x}" if isinstance(raw, int) else ""
            self._stop(f"is not YAML: {what}{shown}", line)
        context = getattr(error, "context", None)
        parts = [str(part) for part in (context, what) if part]
        self._stop(f"is not YAML: {', '.join(parts)} (column {mark.column + 1})", mark.line + 1)

    def _take(self, event: Any) -> None:
        from ruamel.yaml import events as ev

        line = self.line = event.start_mark.line + 1 if event.start_mark is not None else self.line
        if isinstance(event, ev.DocumentStartEvent):
            self.n_documents += 1
            if self.n_documents > 1:
                self._stop("a grid file holds one document; remove what follows '---'", line)
            if event.tags:
                self._stop("%TAG directives are refused", line)
            if event.version is not None and tuple(event.version) != (1, 2):
                self._stop("is read as YAML 1.2; remove the %YAML directive", line)
            return
        if isinstance(event, (ev.MappingEndEvent, ev.SequenceEndEvent)):
            self.stack.pop()
            return
        if not isinstance(event, (ev.ScalarEvent, ev.AliasEvent, ev.MappingStartEvent, ev.SequenceStartEvent)):
            return
        self.n_nodes += 1
        if self.n_nodes > MAX_NODES:
            self._stop(f"has more than {MAX_NODES:,} values", line)
        self._node(event, line)

    def _node(self, event: Any, line: int) -> None:
        from ruamel.yaml import events as ev

        if isinstance(event, ev.AliasEvent):
            self._stop(f"aliases are refused: write the value instead of '*{event.anchor}'", line)
        if event.anchor is not None:
            self._stop(f"anchors are refused: remove '&{event.anchor}'", line)
        if event.ctag is not None:
            self._stop(f"tags are refused: remove {quoted(str(event.ctag))}", line)
        parent = self.stack[-1] if self.stack else None
        if parent is not None and isinstance(parent.value, dict) and parent.expects_key:
            self._key(parent, event, line)
            return
        key = self._place(parent)
        self.source.lines[key] = line
        if isinstance(event, ev.ScalarEvent):
            self._put(parent, self._scalar(event, key, line))
            return
        value: Any = {} if isinstance(event, ev.MappingStartEvent) else []
        self._put(parent, value)
        if len(self.stack) >= MAX_DEPTH:
            self._stop(f"is nested deeper than {MAX_DEPTH} levels", line)
        self.stack.append(_Open(key, value))

    def _place(self, parent: _Open | None) -> Key:
        if parent is None:
            return ()
        return (*parent.key, len(parent.value) if isinstance(parent.value, list) else str(parent.pending))

    def _put(self, parent: _Open | None, value: Any) -> None:
        if parent is None:
            self.source.data = value
        elif isinstance(parent.value, list):
            parent.value.append(value)
        else:
            if parent.pending is not None:
                parent.value.setdefault(parent.pending, value)
            parent.expects_key = True

    def _key(self, parent: _Open, event: Any, line: int) -> None:
        from ruamel.yaml import events as ev

        if not isinstance(event, ev.ScalarEvent):
            self._stop("a key is text, not a list or mapping", line)
        plain = bool(event.implicit[0])
        key = event.value
        if plain and key == "<<":
            self._stop("merge keys are refused: write the values instead of '<<'", line)
        if plain and not isinstance(_core(key), str):
            self.source.report(parent.key, f"a key is text, got {quoted(key)}", line)
        if not key.isprintable():
            self.source.report(parent.key, f"a key has characters that cannot be printed: {quoted(key)}", line)
            key = ascii(key)
        place = (*parent.key, key)
        if key in parent.value:
            first = self.source.lines[place]
            self.source.report(place, f"is given twice; first in line {first}", line)
            key = f"{key} (again, line {line})"
            place = (*parent.key, key)
        parent.pending, parent.expects_key = key, False
        self.source.lines[place] = line

    def _scalar(self, event: Any, key: Key, line: int) -> Any:
        text: str = event.value
        if not event.implicit[0]:
            return self._text(text, key, line)
        if _NON_FINITE.fullmatch(text):
            self.source.report(key, f"must be a finite number, got {text}", line)
            return 0.0
        value = _core(text)
        if isinstance(value, float) and value in (float("inf"), float("-inf")):
            self.source.report(key, f"must be a finite number, got {quoted(text)}", line)
            return 0.0
        if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
            self.source.report(key, f"must fit into 64 bits, got {quoted(text)}", line)
            return 0
        return self._text(value, key, line) if isinstance(value, str) else value

    def _text(self, text: str, key: Key, line: int) -> str:
        if text.isprintable():
            return text
        self.source.report(key, f"has characters that cannot be printed: {quoted(text)}", line)
        return "x"


def _core(text: str) -> Any:
    """A plain scalar by the core schema of YAML 1.2 (§10.3.2)."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text[0] in "tT"
    for pattern, base in ((_INT, 10), (_OCTAL, 8), (_HEX, 16)):
        if pattern.fullmatch(text):
            digits = text if base == 10 else text[2:]
            return int(digits, base) if len(digits) <= 40 else 10**40
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
