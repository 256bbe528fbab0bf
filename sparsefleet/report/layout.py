"""Aligned columns for a terminal, and the same cells as a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsefleet.report.plain import plain, width

_MARKDOWN = str.maketrans({"|": "\\|", "<": "&lt;", ">": "&gt;", "[": "\\[", "]": "\\]", "`": "\\`", "*": "\\*", "_": "\\_"})


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
    lines = ["| " + " | ".join(plain(cell).translate(_MARKDOWN) for cell in row) + " |" for row in rows]
    rule = "|" + "|".join(" ---: " if column.right else " --- " for column in columns) + "|"
    return [lines[0], rule, *lines[1:]]


def _pad(cell: str, room: int, right: bool) -> str:
    space = " " * (room - width(cell))
    return space + cell if right else cell + space
