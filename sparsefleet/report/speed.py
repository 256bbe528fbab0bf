"""The columns of the clock: step time, speed-ups with their verdicts, peak memory; every timing; theory beside what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sparsefleet.report.layout import Column, Struck
from sparsefleet.report.timing import MASKED, alike, middle
from sparsefleet.report.trust import NOTHING, UNTRUSTED, missing

Row = Mapping[str, Any]
ABSENT = "–"
_CONDITIONS = ("dtype", "device", "threads", "baseline", "level", "fingerprint")


def memory_columns(rows: Sequence[Row]) -> list[Column]:
    """Bytes that the net holds; beside it the measured peak, where there is one."""
    columns = [Column("MiB", [_mib(row["resident_bytes"]) for row in rows], right=True)]
    if any(row["peak_bytes"] is not None for row in rows):
        columns.append(Column("peak MiB", [_mib(row["peak_bytes"]) for row in rows], right=True))
    return columns


def speed_columns(rows: Sequence[Row]) -> list[Column]:
    """The headline timing; nothing if nothing was timed."""
    if all(row["step_ms"] is None for row in rows):
        return []
    columns = [
        Column("step ms p50 [p10, p90]", [_step(row) for row in rows]),
        Column("vs dense [95 % CI]", [_vs_dense(row) for row in rows]),
        Column("vs small-dense [95 % CI]", [_vs_small_dense(row) for row in rows]),
        Column("of limit", [_of_limit(row) for row in rows], right=True),
    ]
    return [column for column in columns if any(cell != ABSENT for cell in column.cells)]


def timings(rows: Sequence[Row]) -> tuple[list[int], list[Column]]:
    """Every row's timings, one line per op, batch size and other conditions; two empty lists where no row has more than one.

    Returns:
        (for each line the index of its row, the columns).
    """
    owners, lines = [], []
    for i, row in enumerate(rows):
        left = list(row["timings"])
        while left:
            cells = alike(left, row["timing"]["batch_size"] if row["timing"] else 0, row["fingerprint"])
            left = [t for t in left if t not in cells]
            owners.append(i)
            lines.append(_line(row, middle(cells), len(cells)))
    if len(set(owners)) == len(owners):
        return [], []
    columns = [Column("op", [t["op"] for t in lines]), Column("batch", [str(t["batch_size"]) for t in lines], right=True)]
    for name in _CONDITIONS:
        if len({t[name] for t in lines}) > 1:
            columns.append(Column(name, [str(t[name]) for t in lines]))
    columns.append(
        Column("dense ms", [ABSENT if t["dense_step_ms"] is None else _struck(t, _figure(t["dense_step_ms"])) for t in lines], right=True)
    )
    return owners, [*columns, *speed_columns(lines)]


def theory_columns(rows: Sequence[Row]) -> list[Column]:
    """What counting promises, what the machine allows, what the clock said, and when a conversion has paid; for ``compare --theory``."""

    def shown(heading: str, name: str, text: Callable[[Any], str]) -> Column:
        return Column(heading, [ABSENT if row[name] is None else text(row[name]) for row in rows], right=True)

    measured = [ABSENT if row["vs_dense_width"] is None else _struck(row, times(row["vs_dense_width"])) for row in rows]
    columns = [
        shown("file", "compression", times),
        shown("FLOPs", "theoretical_speedup", times),
        shown("bytes", "bytes_ratio", times),
        shown("roofline", "roofline_speedup", times),
        shown("bound by", "bound", str),
        Column("measured", measured, right=True),
        Column("realised", [_clocked(row, "realised_fraction", _percent) for row in rows], right=True),
        Column("of limit", [_of_limit(row) for row in rows], right=True),
        Column("rewiring", [_percent(row["method_share"]) if row["method_share"] else ABSENT for row in rows], right=True),
        shown("conversion ms", "prepare_s", lambda s: _figure(1000 * s)),
        Column("pays after calls", [_clocked(row, "breakeven_calls", lambda n: f"{n:,.0f}") for row in rows], right=True),
    ]
    return [column for column in columns if any(cell != ABSENT for cell in column.cells)]


def times(ratio: float) -> str:
    """``1.23×``."""
    return f"{ratio:.2f}×" if 0.1 <= ratio < 100 else f"{ratio:.2g}×" if ratio < 0.1 else f"{ratio:,.0f}×"


def _line(row: Row, t: Mapping[str, Any], n: int) -> dict[str, Any]:
    """One measurement with the names that a row has."""
    line = {
        **row,
        **{name: t[name] for name in ("op", "batch_size", *_CONDITIONS)},
        "step_ms": t["sparse_ms"],
        "step_ms_p10": t["sparse_ms_p10"],
        "step_ms_p90": t["sparse_ms_p90"],
        "dense_step_ms": t["dense_ms"],
        "vs_dense_width": t["speedup"],
        "vs_dense_width_ci": t["ci95"],
        "vs_dense_width_verdict": t["verdict"],
        "vs_small_dense": t["rival_speedup"],
        "vs_small_dense_ci": t["rival_ci95"],
        "vs_small_dense_verdict": t["rival_verdict"],
        "theoretical_speedup": t["theory"].get("flop_ratio"),
        "fraction_of_limit": t["theory"].get("fraction_of_limit"),
        "timing": t,
        "timing_trusted": t["trusted"],
        "timing_note": t["note"],
        "n_timed": n,
    }
    return {**line, "headline_missing": missing(line)}


def _step(row: Row) -> str:
    if row["step_ms"] is None:
        return ABSENT
    if row["timing_trusted"] is False:
        return Struck(_figure(row["step_ms"]))
    if row["step_ms_p10"] is None or row["step_ms_p90"] is None:
        return _figure(row["step_ms"])
    return f"{_figure(row['step_ms'])} [{_figure(row['step_ms_p10'])}, {_figure(row['step_ms_p90'])}]"


def _vs_dense(row: Row) -> str:
    if row["arm"] == "dense" and row["step_ms"] is not None:
        return times(1.0)
    if row["vs_dense_width"] is None:
        return UNTRUSTED if row["vs_dense_width_verdict"] == UNTRUSTED else _why_none(row)
    if row["headline_missing"]:
        return ABSENT
    return _speedup(row["vs_dense_width"], row["vs_dense_width_ci"], row["vs_dense_width_verdict"])


def _vs_small_dense(row: Row) -> str:
    unfit = [what for what in row["headline_missing"] if what not in ("the absolute dense time", "its interval")]
    if unfit or row["arm"] == "dense":
        return ABSENT
    if row["vs_small_dense"] is None or row["vs_small_dense_ci"] is None:
        return UNTRUSTED if row["vs_small_dense_verdict"] == UNTRUSTED else ABSENT
    verdict = row["vs_small_dense_verdict"] if row["timing_trusted"] else UNTRUSTED
    return _speedup(row["vs_small_dense"], row["vs_small_dense_ci"], verdict)


def _speedup(value: float, bounds: Sequence[float], verdict: str) -> str:
    if verdict == UNTRUSTED:
        return Struck(times(value), UNTRUSTED)
    low, high = (times(bound).removesuffix("×") for bound in bounds)
    return f"{times(value)} [{low}, {high}]" + ("" if verdict == NOTHING else f" {verdict}")


def _why_none(row: Row) -> str:
    if row["execution"] == MASKED:
        return "masked: none"
    if row["timing"] and row["timing"]["baseline"] == "none" and "infeasible" in row["timing_note"]:
        return "dense infeasible"
    return ABSENT


def _of_limit(row: Row) -> str:
    return _clocked(row, "fraction_of_limit", _percent)


def _clocked(row: Row, name: str, text: Callable[[Any], str]) -> str:
    return ABSENT if row[name] is None else _struck(row, text(row[name]))


def _struck(row: Row, text: str) -> str:
    return Struck(text) if row["timing_trusted"] is False else text


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 else f"{100 * share:.2g} %"


def _figure(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:,.1f}"


def _mib(n_bytes: float | None) -> str:
    if n_bytes is None:
        return ABSENT
    mib = n_bytes / 2**20
    return f"{mib:.3f}" if mib < 0.1 else f"{mib:.2f}" if mib < 10 else f"{mib:,.1f}" if mib < 1000 else f"{mib:,.0f}"
