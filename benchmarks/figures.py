"""A measured figure beside its target, for people and as JSON with the machine it comes from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One measured value.

    Attributes:
        value: None if it was not run.
        spread: lowest and highest of the repetitions.
        target: limit that the value must keep; None if it is only told.
        at_least: whether the target is a lower limit.
    """

    what: str
    unit: str
    value: float | None = None
    spread: tuple[float, float] | None = None
    target: float | None = None
    at_least: bool = True
    note: str = ""

    @property
    def kept(self) -> bool | None:
        """Whether the target is kept; None without a value or a target."""
        if self.value is None or self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target

    def line(self) -> str:
        """For people."""
        if self.value is None:
            found = f"not run{f': {self.note}' if self.note else ''}"
        else:
            spread = f" [{self.spread[0]:.3g}, {self.spread[1]:.3g}]" if self.spread else ""
            found = f"{self.value:.3g}{spread} {self.unit}{f'  ({self.note})' if self.note else ''}"
        limit = "" if self.target is None else f"  target {'>=' if self.at_least else '<='} {self.target:g} {self.unit}"
        verdict = {True: "  kept", False: "  MISSED", None: ""}[self.kept]
        return f"  {self.what:58} {found}{limit}{verdict}"


def tell(suite: str, figures: Sequence[Figure], *, options: dict[str, Any], raw: Any, path: Path | None) -> int:
    """Print the figures, write them with the machine's fingerprint to ``path``, and return 1 if a target is missed."""
    from sparsefleet.measure.fingerprint import fingerprint

    machine = fingerprint()
    cpu, now = machine["stable"]["cpu"], machine["now"]
    print(f"{suite} on {cpu['model']}, {len(cpu['allowed'])} of {cpu['logical']} cores, load {now['load']}, {machine['id']}")
    for figure in figures:
        print(figure.line())
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{**asdict(figure), "kept": figure.kept} for figure in figures]
        body = {"suite": suite, "options": options, "figures": rows, "raw": raw, "fingerprint": machine}
        path.write_text(json.dumps(body, indent=1, allow_nan=False) + "\n")
        print(f"  written to {path}")
    return int(any(figure.kept is False for figure in figures))
