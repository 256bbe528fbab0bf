"""The comparison as a table: in a terminal, and as the Markdown note of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsefleet.report.labels import labels, short
from sparsefleet.report.layout import Column, markdown_lines, text_lines
from sparsefleet.report.notes import notes
from sparsefleet.report.plain import plain

Row = Mapping[str, Any]
_ABSENT = "–"


def render(rows: Sequence[Row], by: Sequence[str] = (), metric: str = "accuracy") -> list[str]:
    """Lines of plain text: the table, then what its figures rest on. Empty rows give one line that says so."""
    if not rows:
        return ["no trials"]
    return [*text_lines(columns(rows, by, metric)), *(plain(line) for line in notes(rows))]


def render_markdown(rows: Sequence[Row], by: Sequence[str] = (), metric: str = "accuracy") -> str:
    """The same as Markdown."""
    if not rows:
        return "no trials\n"
    lines = [*markdown_lines(columns(rows, by, metric)), ""]
    return "\n".join([*lines, *(f"- {plain(line).replace('<', '&lt;')}" for line in notes(rows))]) + "\n"


def columns(rows: Sequence[Row], by: Sequence[str] = (), metric: str = "accuracy") -> list[Column]:
    """The columns that say something: one whose value never changes is left out, except density and method."""
    names = list(dict.fromkeys([*by, "dataset", "model", "density_asked", "method", "variant", "arm", "layer", "setting"]))
    head = [_named(name, rows) for name in names]
    shown = [c for c, name in zip(head, names, strict=True) if name in by or name in ("density_asked", "method") or _varies(name, c.cells)]
    return [*shown, *_results(rows, metric), *_sizes(rows), *_speeds(rows)]


def _varies(name: str, cells: Sequence[str]) -> bool:
    if name == "arm":
        return bool(set(cells) - {"dense", "sparse"})
    return len(set(cells)) > 1


def _named(name: str, rows: Sequence[Row]) -> Column:
    headings = {"density_asked": "density"}
    if name == "density_asked":
        return Column("density", [f"{row[name]:.4g}" if row[name] < 1 else "1" for row in rows])
    if name in ("dataset", "model", "layer"):
        return Column(name, labels(name, rows))
    return Column(headings.get(name, name), [_words(row.get(name)) for row in rows])


def _results(rows: Sequence[Row], metric: str) -> list[Column]:
    what = metric if metric != "accuracy" else {"top1": "acc", "mse": "mse"}.get(rows[0]["metric"], rows[0]["metric"])
    counts = {(row["trials"], row["n_ok"]) for row in rows}
    n = next(iter(counts))[0]
    uniform = counts == {(n, n)}
    values = [_with_interval(row[metric], row[f"{metric}_ci"]) for row in rows]
    heading = f"{what} (mean ± 95 % CI, n={n})" if uniform and n > 1 else f"{what} (n=1)" if uniform else f"{what} (mean ± 95 % CI)"
    delta = "delta_twin" if metric == "accuracy" else f"delta_{metric}"
    gaps = [_gap(row[delta], row[f"{delta}_ci"]) for row in rows]
    found = [Column(heading, values), Column("Δ dense [95 % CI]" if n > 1 else "Δ dense", gaps, right=n <= 1)]
    return found if uniform else [Column("seeds", [_seeds(row) for row in rows]), *found]


def _seeds(row: Row) -> str:
    """``n=3, 1 diverged``: how many count, and what became of the others."""
    told = [f"n={row['n_ok'] + row['n_diverged']}"]
    told += [
        f"{row[name]} {word}" for name, word in (("n_diverged", "diverged"), ("n_failed", "failed"), ("n_not_run", "not run")) if row[name]
    ]
    return ", ".join(told)


def _with_interval(value: float | None, bounds: Sequence[float] | None) -> str:
    if value is None:
        return _ABSENT
    digits = _digits(value)
    if bounds is None:
        return f"{value:.{digits}f}"
    low, high = bounds
    half = (high - low) / 2
    if abs((high - value) - half) > 1e-9 * max(abs(value), 1e-9):  # a bootstrap interval leans
        return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{value:.{digits}f} ± {half:.{digits}f}"


def _gap(value: float | None, bounds: Sequence[float] | None) -> str:
    if value is None:
        return _ABSENT
    digits = _digits(value) if abs(value) >= 1 else 3
    if bounds is None:
        return _minus(f"{value:+.{digits}f}")
    return _minus(f"{value:+.{digits}f} [{bounds[0]:+.{digits}f}, {bounds[1]:+.{digits}f}]")


def _sizes(rows: Sequence[Row]) -> list[Column]:
    return [
        Column("params", [_ABSENT if row["params"] is None else f"{row['params']:,}" for row in rows], right=True),
        Column("MiB", [_ABSENT if row["resident_bytes"] is None else _mib(row["resident_bytes"]) for row in rows], right=True),
    ]


def _speeds(rows: Sequence[Row]) -> list[Column]:
    if all(row["step_ms"] is None for row in rows):
        return []
    spread = "step ms p50 [p10, p90]"
    steps = []
    for row in rows:
        if row["step_ms"] is None:
            steps.append(_ABSENT)
        elif row["step_ms_p10"] is None or row["step_ms_p90"] is None:
            steps.append(_figure(row["step_ms"]))
        else:
            steps.append(f"{_figure(row['step_ms'])} [{_figure(row['step_ms_p10'])}, {_figure(row['step_ms_p90'])}]")
    return [
        Column(spread, steps),
        Column("vs dense [95 % CI]", [_speedup(row) for row in rows]),
        Column("trusted", [_trusted(row) for row in rows]),
    ]


def _speedup(row: Row) -> str:
    if row["arm"] == "dense" and row["step_ms"] is not None:
        return "1.00×"
    if row["vs_dense_width"] is None:
        return "masked: none" if row["execution"] == "masked_dense" else _ABSENT
    bounds = row["vs_dense_width_ci"]
    return f"{row['vs_dense_width']:.2f}×" + (f" [{bounds[0]:.2f}, {bounds[1]:.2f}]" if bounds else " (no interval)")


def _trusted(row: Row) -> str:
    if row["timing_trusted"] is None:
        return _ABSENT
    return "yes" if row["timing_trusted"] else "no"


def _digits(value: float) -> int:
    return 3 if abs(value) < 10 else 1


def _figure(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:,.1f}"


def _mib(n_bytes: float) -> str:
    mib = n_bytes / 2**20
    return f"{mib:.3f}" if mib < 0.1 else f"{mib:.2f}" if mib < 10 else f"{mib:,.1f}" if mib < 1000 else f"{mib:,.0f}"


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{path.removeprefix('method.')}={short(v)}" for path, v in value.items())
    return short(value)
