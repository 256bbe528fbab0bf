"""Reads the tutorial: its fenced blocks in order, as steps that a test can run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
_FENCE = re.compile(r"^```(\S+)[ ]?(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Step:
    """A block: ``bash`` lines to run, or a file to write, whose first line names it.

    ``how`` stands beside the language: ``install`` is for a reader's machine, ``fails=N`` ends with that exit code, ``interrupted`` runs until Ctrl-C.
    """

    language: str
    how: str
    body: str

    @property
    def file(self) -> str:
        """Where a block that is a file goes."""
        return self.body.split("\n", 1)[0].removeprefix("# ")

    @property
    def lines(self) -> list[str]:
        """The commands of a ``bash`` block."""
        return self.body.strip().split("\n")


def steps() -> list[Step]:
    """Every block but those that show what is printed, and those marked ``install``."""
    found = [Step(*match.groups()) for match in _FENCE.finditer(PAGE.read_text())]
    return [step for step in found if step.language != "text" and step.how != "install"]
