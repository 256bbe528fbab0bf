"""Aligned columns for a terminal, and the same cells as a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsefleet.report.plain import plain, width

_MARKDOWN = str.maketrans({c: f"\\{c}" for c in "|[]`*_~"} | {"<": "&lt;", ">": "&gt;"})


class Struck(str):
    """A figure that may not be used, and the word that says so: ``(1.23×) WORD`` in a terminal, ``~~1.23×~~ WORD`` in Markdown."""

    figure: str
    word: str

    def __new__(cls, figure: str, word: str = "") -> Struck:
        self = super().__new__(cls, f"({figure}) {word}".rstrip())
        self.figure, self.word = figure, word
        return self

    def markdown(self) -> str:
        """As Markdown."""
        return f"~~{escaped(self.figure)}~~ {escaped(self.word)}".rstrip()


@dataclass(frozen=True)
class Column:
    """A heading, its cells, and on which side they stand."""

    heading: str
    cells: Sequence[str]
    right: bool = False


def text_lines(columns: Sequence[Column]) -> list[str]:
    """A heading and one line per row, two spaces between columns; nothing but printable text."""
    padded = []
    for column in columns:
        cells = [plain(column.heading), *map(plain, column.cells)]
        room = max(map(width, cells))
        padded.append([_pad(cell, room, column.right) for cell in cells])
    return ["  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]


def markdown_lines(columns: Sequence[Column]) -> list[str]:
    """The table in GitHub's Markdown; cells cannot break out of it or become HTML."""
    rows = zip(*([column.heading, *column.cells] for column in columns), strict=True)
    lines = ["| " + " | ".join(cell.markdown() if isinstance(cell, Struck) else escaped(cell) for cell in row) + " |" for row in rows]
    rule = "|" + "|".join(" ---: " if column.right else " --- " for column in columns) + "|"
    return [lines[0], rule, *lines[1:]]


def escaped(text: str) -> str:
    """Text that stands in Markdown as it is."""
    return plain(text).translate(_MARKDOWN)


def _pad(cell: str, room: int, right: bool) -> str:
    space = " " * (room - width(cell))
    return space + cell if right else cell + space
