"""A reproduction as text: the table, why rows say nothing, what is known to differ, and the verdict; and its exit code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sparsefleet.report.layout import Column, text_lines
from sparsefleet.report.reproducing import STATUSES, Judged
from sparsefleet.report.reproduction import Reproduction

_ABSENT = "–"
NOT_A_REPRODUCTION = 6
FAILED = 5


def exit_code(rows: Sequence[Judged]) -> int:
    """0 if every row passed; 6 if some cannot be judged, because they are under-trained, altered or not run; 5 if all can and some failed."""
    statuses = {row.status for row in rows}
    if statuses & {"UNDER-TRAINED", "ALTERED", "NOT RUN"}:
        return NOT_A_REPRODUCTION
    return FAILED if "FAIL" in statuses else 0


def render(reproduction: Reproduction, rows: Sequence[Judged]) -> list[str]:
    """Lines of plain text."""
    lines = [f"{reproduction.name}: {reproduction.title}", f"source: {reproduction.source}", ""]
    figures, orders = [r for r in rows if r.published is not None], [r for r in rows if r.published is None]
    for part in (figures, orders):
        if part:
            lines += [*text_lines(_columns(part)), ""]
    lines += _told(rows)
    lines += [f"tolerance: {text}" for text in dict.fromkeys(r.because for r in rows if r.because)]
    lines += [f"differs: {text}" for text in reproduction.differs]
    return [*lines, verdict(rows)]


def verdict(rows: Sequence[Judged]) -> str:
    """The last line."""
    counts = Counter(row.status for row in rows)
    told = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    ending = {0: "reproduced", FAILED: "run as published, and not reproduced", NOT_A_REPRODUCTION: "this is not a reproduction"}
    return f"{told}: {ending[exit_code(rows)]}"


def _columns(rows: Sequence[Judged]) -> list[Column]:
    found = [Column("row", [r.label for r in rows])]
    if rows[0].published is not None:
        found += [
            Column("published", [_with(r.published, r.se, r, "SE ") for r in rows], right=True),
            Column("ours (mean, 95 % CI)", [_ours(r) for r in rows], right=True),
            Column("n", [str(r.n) for r in rows], right=True),
            Column("gap", [_signed(r.gap, r) for r in rows], right=True),
            Column("tolerance", [f"{r.tolerance:g}" for r in rows], right=True),
        ]
    else:
        found += [
            Column("difference (mean, 95 % CI)", [_ours(r, signed=True) for r in rows], right=True),
            Column("n", [str(r.n) for r in rows], right=True),
        ]
    return [*found, Column("", [r.status for r in rows])]


def _told(rows: Sequence[Judged]) -> list[str]:
    """Each reason once, with the rows that it is for."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.reasons:
            by_reason.setdefault((row.status, "; ".join(row.reasons)), []).append(row.label)
    every = len(rows)
    return [
        f"{status} ({'all rows' if len(labels) == every > 1 else ', '.join(labels)}): {reason}"
        for (status, reason), labels in by_reason.items()
    ]


def _digits(row: Judged) -> int:
    return 2 if "%" in row.unit else 4


def _with(value: float | None, spread: float | None, row: Judged, word: str) -> str:
    if value is None:
        return _ABSENT
    return f"{value:.{_digits(row)}f}" + (f" ({word}{spread:.2g})" if spread is not None else "")


def _ours(row: Judged, *, signed: bool = False) -> str:
    if row.ours is None:
        return _ABSENT
    digits, plus = _digits(row), "+" if signed else ""
    if row.interval is None:
        return f"{row.ours:{plus}.{digits}f}"
    return f"{row.ours:{plus}.{digits}f} [{row.interval[0]:{plus}.{digits}f}, {row.interval[1]:{plus}.{digits}f}]"


def _signed(value: float | None, row: Judged) -> str:
    return _ABSENT if value is None else f"{value:+.{_digits(row)}f}"
