"""The comparison as a table: in a terminal, and as the Markdown note of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsefleet.report.accuracy import INFEASIBLE, MIN_PAIRS
from sparsefleet.report.labels import labels, settings, short
from sparsefleet.report.layout import Column, markdown_lines, text_lines
from sparsefleet.report.notes import notes
from sparsefleet.report.plain import plain
from sparsefleet.report.speed import memory_columns, speed_columns, theory_columns, timings

Row = Mapping[str, Any]
_ABSENT = "–"
_MOST_TIMINGS = 24
"""A terminal shows no more of them unasked: the comparison itself would scroll away."""
_DENSITY_WITHIN = 0.01
"""How far, relatively, a realised density may lie from the asked one without being shown beside it."""
_SHOWN_ANYWAY = ("vs_dense_width", "vs_small_dense", "step_ms")


def render(
    rows: Sequence[Row], by: Sequence[str] = (), metric: str = "accuracy", *, theory: bool = False, every: bool = False
) -> list[str]:
    """Lines of plain text: the tables, then what their figures rest on. Empty rows give one line that says so.

    Args:
        theory: add the table of what counting and the machine's limits promise.
        every: show every timing, however many there are.
    """
    if not rows:
        return ["no trials"]
    n_timings = len(timings(rows)[0])
    every = every or n_timings <= _MOST_TIMINGS
    blocks = [text_lines(table) for table in tables(rows, by, metric, theory=theory, every=every)]
    left_out = [] if every else [f"{n_timings} timings in all, at other ops and batch sizes too: compare --timings has a line for each"]
    apart = [[*block, *([""] if len(blocks) > 1 else [])] for block in blocks]
    return [*(line for block in apart for line in block), *left_out, *(plain(line) for line in notes(rows))]


def render_markdown(rows: Sequence[Row], by: Sequence[str] = (), metric: str = "accuracy") -> str:
    """The same as Markdown."""
    if not rows:
        return "no trials\n"
    lines = [line for table in tables(rows, by, metric) for line in [*markdown_lines(table), ""]]
    return "\n".join([*lines, *(f"- {plain(line).replace('<', '&lt;')}" for line in notes(rows))]) + "\n"


def tables(
    rows: Sequence[Row], by: Sequence[str] = (), metric: str = "accuracy", *, theory: bool = False, every: bool = True
) -> list[list[Column]]:
    """The comparison; every timing where a row has more than one; theory beside measurement if asked for."""
    found = [columns(rows, by, metric)]
    owners, lines = timings(rows) if every else ([], [])
    if lines:
        found.append([*_of(identity(rows, by), owners), *lines])
    promised = theory_columns(rows) if theory else []
    return [*found, [*identity(rows, by), *promised]] if promised else found


def columns(rows: Sequence[Row], by: Sequence[str] = (), metric: str = "accuracy") -> list[Column]:
    """The columns that say something: one whose value never changes is left out, except density and method."""
    return [*identity(rows, by), *_results(rows, metric), *_sizes(rows), *speed_columns(rows)]


def identity(rows: Sequence[Row], by: Sequence[str] = ()) -> list[Column]:
    """What tells the rows apart."""
    names = list(dict.fromkeys([*by, "dataset", "model", "density_asked", "method", "variant", "arm", "layer", "setting"]))
    named = [(name, _named(name, rows)) for name in names if name not in _SHOWN_ANYWAY]
    return [column for name, column in named if name in by or name in ("density_asked", "method") or _varies(name, column.cells)]


def _of(columns: Sequence[Column], owners: Sequence[int]) -> list[Column]:
    """The same columns with the cells of these rows."""
    return [Column(c.heading, [c.cells[i] for i in owners], c.right) for c in columns]


def _varies(name: str, cells: Sequence[str]) -> bool:
    if name == "arm":
        return bool(
            set(cells) - {"dense", "sparse", "small-dense", "random-static", "shuffled-mask", "reinit-mask"}
        )  # the method says it too
    return len(set(cells)) > 1


def _named(name: str, rows: Sequence[Row]) -> Column:
    headings = {"density_asked": "density"}
    if name == "density_asked":
        return Column("density", [_density(row) for row in rows])
    if name in ("dataset", "model", "layer"):
        return Column(name, labels(name, rows))
    return Column(headings.get(name, name), [_words(row.get(name)) for row in rows])


def _density(row: Row) -> str:
    """The density that was asked; the realised one too, where it is another one."""
    asked, realised = row["density_asked"], row["density_realised"]
    differs = row["arm"] != "small-dense" and realised is not None and abs(realised / asked - 1) > _DENSITY_WITHIN
    return (f"{asked:.4g}" if asked < 1 else "1") + (f" (is {realised:.3g})" if differs else "")


def _results(rows: Sequence[Row], metric: str) -> list[Column]:
    what = metric if metric != "accuracy" else {"top1": "acc", "mse": "mse"}.get(rows[0]["metric"], rows[0]["metric"])
    counts = {(row["trials"], row["n_ok"]) for row in rows}
    n = next(iter(counts))[0]
    uniform = counts == {(n, n)}
    values = [_with_interval(row[metric], row[f"{metric}_ci"]) for row in rows]
    heading = f"{what} (mean ± 95 % CI, n={n})" if uniform and n > 1 else f"{what} (n=1)" if uniform else f"{what} (mean ± 95 % CI)"
    delta = "delta_twin" if metric == "accuracy" else f"delta_{metric}"
    gaps = [INFEASIBLE if _is_infeasible(row) else _gap(row[delta], row[f"{delta}_ci"]) for row in rows]
    found = [Column(heading, values), Column("Δ dense [95 % CI]" if n > 1 else "Δ dense", gaps, right=n <= 1)]
    if metric == "accuracy":
        before = [row["before_fine_tuning"] for row in rows]
        if any(value is not None for value in before):
            found.insert(0, Column("before fine-tuning", [_ABSENT if value is None else f"{value:.4f}" for value in before], right=True))
        found += _rivals(rows, n)
    found += _verdicts(rows)
    return found if uniform else [Column("seeds", [_seeds(row) for row in rows]), *found]


def _rivals(rows: Sequence[Row], n: int) -> list[Column]:
    """The difference to small-dense, where one was trained."""
    if all(row["delta_rival"] is None for row in rows):
        return []
    gaps = [_gap(row["delta_rival"], row["delta_rival_ci"]) for row in rows]
    return [Column("Δ small-dense [95 % CI]" if n > 1 else "Δ small-dense", gaps, right=n <= 1)]


def _verdicts(rows: Sequence[Row]) -> list[Column]:
    """Whether accuracy held, where a row has the seeds to claim it; and what tuning chose."""
    found = []
    if any(row["n_paired"] >= MIN_PAIRS for row in rows):
        found.append(Column("acc vs dense", [row["acc_verdict"] or _ABSENT for row in rows]))
    if any(row["n_paired_rival"] >= MIN_PAIRS for row in rows):
        found.append(Column("acc vs small-dense", [row["acc_verdict_rival"] or _ABSENT for row in rows]))
    if any(row["tuning"] for row in rows):
        found.append(Column("tuned", [_tuned(row["tuning"]) for row in rows]))
    return found


def _tuned(tuning: Mapping[str, Any] | None) -> str:
    """``lr=0.1 (1 of 3)``."""
    if tuning is None:
        return "no"
    chosen = ", ".join(f"{path.rsplit('.', 1)[-1]}={short(value)}" for path, value in tuning["selected"].items())
    return f"{chosen} (1 of {tuning['candidates']})"


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


def _is_infeasible(row: Row) -> bool:
    """Whether the row's dense twin was not trained because it does not fit; the note under the table says what it needs."""
    return str(row["acc_reason"]).startswith(INFEASIBLE)


def _gap(value: float | None, bounds: Sequence[float] | None) -> str:
    if value is None:
        return _ABSENT
    digits = _digits(value) if abs(value) >= 1 else 3
    if bounds is None:
        return _minus(f"{value:+.{digits}f}")
    return _minus(f"{value:+.{digits}f} [{bounds[0]:+.{digits}f}, {bounds[1]:+.{digits}f}]")


def _sizes(rows: Sequence[Row]) -> list[Column]:
    params = [_ABSENT if row["params"] is None else f"{row['params']:,}" for row in rows]
    return [Column("params", params, right=True), *memory_columns(rows)]


def _digits(value: float) -> int:
    return 3 if abs(value) < 10 else 1


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return settings(value)
    return short(value)
