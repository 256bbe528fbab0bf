"""What a benchmark hands back: a measured value beside its target."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

QUICK = "quick run"
"""The doubt about every figure of one."""


class NotRun(Exception):
    """Raised by a benchmark that cannot run here; the text says why."""


@dataclass(frozen=True)
class Figure:
    """One measured value.

    Attributes:
        value: None if it was not run; then ``note`` says why.
        spread: lowest and highest of the repetitions, or an interval.
        target: limit that the value must keep; None if it is only told.
        at_least: whether the target is a lower limit.
        most: an upper limit beside a lower ``target``.
        doubt: why the value proves nothing: its timing is not trustworthy, or the run was a quick one; then no target is kept or missed by it.
        broken: the benchmark itself failed; that is neither "not run" nor "missed".
    """

    what: str
    unit: str
    value: float | None = None
    spread: tuple[float, float] | None = None
    target: float | None = None
    at_least: bool = True
    note: str = ""
    most: float | None = None
    broken: bool = False
    doubt: str = ""

    @property
    def kept(self) -> bool | None:
        """Whether the target is kept; None without a value or a target, and where the value is in doubt."""
        if self.value is None or self.target is None or self.doubt:
            return None
        if not self.at_least:
            return self.value <= self.target
        return self.target <= self.value and (self.most is None or self.value <= self.most)

    @property
    def word(self) -> str:
        """``kept``, ``MISSED``, ``UNPROVEN`` (the value is in doubt), ``told`` (there is no target), ``not run`` or ``BROKEN``."""
        if self.broken:
            return "BROKEN"
        if self.value is None:
            return "not run"
        if self.doubt and self.target is not None:
            return "UNPROVEN"
        return {True: "kept", False: "MISSED", None: "told"}[self.kept]

    @property
    def limit(self) -> str:
        """The target for people; empty without one."""
        if self.target is None:
            return ""
        if self.most is not None:
            return f"{self.target:g} to {self.most:g} {self.unit}"
        return f"{'>=' if self.at_least else '<='} {self.target:g} {self.unit}"

    def line(self) -> str:
        """For people: what, value, target, word."""
        doubt = "" if self.doubt in self.note else self.doubt
        because = "; ".join(part for part in (doubt, self.note) if part)
        because = f"  ({because})" if because else ""
        if self.value is None:
            return f"{self.what:62} {self.word}{f': {self.note}' if self.note else ''}"
        spread = f" [{self.spread[0]:.4g}, {self.spread[1]:.4g}]" if self.spread else ""
        limit = f"  target {self.limit}  {self.word}" if self.limit else ""
        return f"{self.what:62} {self.value:.4g}{spread} {self.unit}{limit}{because}"


class Run:
    """What a benchmark is told, and where it says how far it is.

    Attributes:
        id: of the part.
        quick: fewer cells, to see that it works; its figures never replace those of a full run.
        raw: what ``keep`` was given.
    """

    def __init__(self, id: str = "", *, quick: bool = False) -> None:
        self.id = id
        self.quick = quick
        self.raw: Any = None

    def say(self, text: str) -> None:
        """Progress, on stderr."""
        print(f"    {text}", file=sys.stderr, flush=True)

    def keep(self, raw: Any) -> None:
        """Stores JSON values beside the figures."""
        self.raw = raw

    def pick(self, full: int, quick: int) -> int:
        """How many, by kind of run."""
        return quick if self.quick else full

    def note(self, text: str = "") -> str:
        """``text``, with the remark that a quick run deserves."""
        return "; ".join(part for part in (text, f"{QUICK}, few cells" if self.quick else "") if part)
