"""Accuracy against sparsity, a line per method, with intervals over the seeds (source 000, section 6)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparsefleet.report.groups import leaves
from sparsefleet.report.pictures.style import COLOURS, LINES, MARKERS, grid_of, share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
_LEVEL = re.compile(r"(?:^|, ?)level (\d+) of (\d+)")


def accuracy(rows: Sequence[Row]) -> Figure | None:
    """A panel per data set and model; None where no sparse row has a figure.

    Sparsity runs to the right with a step for every halving of the density. Error bars and the dense band are 95 % intervals of the mean over seeds,
    where there are enough seeds for one.

    Args:
        rows: of ``sparsefleet.report.compare.rows``, each with the ``spec`` of its first trial.
    """
    places: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row["accuracy"] is not None:
            places.setdefault((row["dataset"], row["model"], str(row["dataset_params"]), str(row["model_params"])), []).append(row)
    places = {place: found for place, found in places.items() if any(row["arm"] != "dense" for row in found)}
    if not places:
        return None
    figure, grid = grid_of(len(places), 1, 7.4, 4.4)
    for (axes,), (place, found) in zip(grid, places.items(), strict=True):
        _panel(axes, found)
        axes.set_title(f"{place[0]}, {place[1]}", fontsize=9)
    figure.suptitle("Accuracy against sparsity", fontsize=10)
    return figure


def lines(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The sparse rows by the name of their line, densest first.

    A line's rows differ in density and seed alone; the levels of a lottery, each sparser than the one before, are one line. Its name is the method with its variant, and where several lines would share a name, what of
    their specs tells them apart.
    """
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["arm"] != "dense":
            found.setdefault((_method(row), json.dumps(_setting(row), sort_keys=True)), []).append(row)
    alike: dict[str, list[tuple[str, str]]] = {}
    for line in found:
        alike.setdefault(line[0], []).append(line)
    named = {}
    for name, keys in alike.items():
        values = [dict(leaves(json.loads(setting))) for _, setting in keys]
        paths = sorted({path for value in values for path in value if len({json.dumps(other.get(path)) for other in values}) > 1})
        for key, value in zip(keys, values, strict=True):
            told = ", ".join(_told(path, value) for path in paths if value.get(path) not in (None, {}))
            named[f"{name}, {told}" if told else name] = sorted(found[key], key=lambda row: -_density(row))
    return named


def _setting(row: Row) -> dict[str, Any]:
    """What all rows of a line share, of the spec that the row's first trial has."""
    apart = ("seed", "density", "narrow_to_density", "start", "schema")
    setting = {name: value for name, value in row["spec"].items() if name not in apart}
    level = _LEVEL.search(row["variant"])
    if level is None:
        return setting
    number, levels = int(level[1]), int(level[2])
    method = setting["method"]
    rewind = {name: value for name, value in (method["rewind"] or {}).items() if name != "level"}
    return {**setting, "method": {**method, "rewind": rewind}, "down to": float(f"{row['density_asked'] ** (levels / number):.6g}")}


def _told(path: str, values: Mapping[str, Any]) -> str:
    """``connectivity small-world``; a plugin by its name, a parameter by its own."""
    parts = path.split(".")
    name = parts[-2] if parts[-1] == "name" and len(parts) > 1 else parts[-1]
    return f"{name} {values[path]}"


def _panel(axes: Any, rows: Sequence[Row]) -> None:
    percent = rows[0]["metric"] == "top1"
    scale = 100.0 if percent else 1.0
    for i, (name, line) in enumerate(lines(rows).items()):
        x, y = [_density(row) for row in line], [scale * row["accuracy"] for row in line]
        gaps = [
            [scale * (row["accuracy"] - row["accuracy_ci"][0]) if row["accuracy_ci"] else 0.0 for row in line],
            [scale * (row["accuracy_ci"][1] - row["accuracy"]) if row["accuracy_ci"] else 0.0 for row in line],
        ]
        style = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": LINES[i // len(COLOURS) % len(LINES)],
        }
        n = {row["seeds"] for row in line}
        axes.errorbar(
            x,
            y,
            yerr=gaps,
            capsize=3,
            linewidth=1.4,
            markersize=5,
            label=f"{name} (n={min(n)}{'–' + str(max(n)) if len(n) > 1 else ''})",
            **style,
        )
    for i, row in enumerate(row for row in rows if row["arm"] == "dense"):
        axes.axhline(
            scale * row["accuracy"],
            color="#606060",
            linewidth=1.2,
            linestyle=LINES[(i + 1) % len(LINES)],
            label=f"dense (n={row['seeds']})",
        )
        if row["accuracy_ci"]:
            axes.axhspan(*(scale * end for end in row["accuracy_ci"]), color="#606060", alpha=0.12, linewidth=0)
    known = sorted({_density(row) for row in rows if row["arm"] != "dense"}, reverse=True)
    axes.set_xscale("log", base=2)
    axes.set_xlim(max(known) * 1.25, min(known) / 1.25)
    axes.set_xticks(_apart(known), [share(1 - density) for density in _apart(known)], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel("sparsity: share of the prunable weights that is gone", fontsize=8)
    axes.set_ylabel("test accuracy (%)" if percent else "test error (mean squared)", fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)


def _method(row: Row) -> str:
    name = row["arm"] if row["arm"] not in ("sparse", "dense") else row["method"]
    variant = _LEVEL.sub("", row["variant"])
    return f"{name} ({variant})" if variant else str(name)


def _density(row: Row) -> float:
    """Realised; of a net that was narrowed, what it was narrowed to."""
    if row["arm"] == "small-dense" or row["density_realised"] is None:
        return float(row["density_asked"])
    return float(row["density_realised"])


def _apart(densities: Sequence[float]) -> list[float]:
    """Those densities that lie at least a tenth apart from the one before, so that ticks do not overlap."""
    ticks: list[float] = []
    for density in densities:
        if not ticks or density < ticks[-1] / 1.1:
            ticks.append(density)
    return ticks
