"""What all pictures share: size, colours that a colour-blind reader tells apart, and PNG bytes that depend on the data alone."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100
REMOVED, ADDED, KEPT = "#d55e00", "#0072b2", "#b0b0b0"
CONNECTION, ORIGINAL = "#08306b", "#7f2704"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999933")
"""Okabe and Ito's palette, its yellow replaced by olive, which shows on white."""
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def panels(n: int, most_columns: int, width: float = 3.2, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """A figure of ``n`` panels in rows of at most ``most_columns``.

    Args:
        width, height: of one panel, inches.
    """
    columns = max(1, min(n, most_columns))
    rows = max(1, math.ceil(n / columns))
    figure, grid = grid_of(rows, columns, width, height)
    flat = [axes for row in grid for axes in row]
    for axes in flat[n:]:
        axes.set_axis_off()
    return figure, flat[:n]


def grid_of(rows: int, columns: int, width: float = 3.2, height: float = 3.2) -> tuple[Figure, list[list[Axes]]]:
    """A figure of ``rows`` times ``columns`` panels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(4.0, columns * width), rows * height + 0.4), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [list(row) for row in figure.subplots(rows, columns, squeeze=False)]


def png(figure: Figure) -> bytes:
    """The figure as PNG: equal data give equal bytes with one version of matplotlib; no date and no version is written. The figure is
    empty afterwards.
    """
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    figure.clear()  # its parts refer to one another, and a process that draws many would keep them for long
    return out.getvalue()


def binary(axes: Axes, cells: Any, colour: str, *, white: float = 1.0) -> None:
    """Draws ``(rows, cols)`` shares in [0, 1]: white where nothing is connected, ``colour`` at the share ``white`` and above."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("connections", ["#ffffff", colour])
    axes.imshow(cells, cmap=shades, vmin=0.0, vmax=white, interpolation="nearest", aspect=aspect_of(cells))
    ticks(axes, cells)


def aspect_of(cells: Any) -> Literal["equal", "auto"]:
    """Square cells, unless that makes a strip nobody can read."""
    rows, cols = cells.shape[:2]
    return "equal" if max(rows, cols) <= 4 * min(rows, cols) else "auto"


def ticks(axes: Axes, cells: Any, shape: tuple[int, int] | None = None) -> None:
    """First and last unit on both axes, as numbers of units also where cells stand for many.

    Args:
        shape: ``(n_out, n_in)`` of the layer; default: a cell is a unit.
    """
    rows, cols = cells.shape[:2]
    n_out, n_in = shape or (rows, cols)
    axes.set_xticks([0, cols - 1] if cols > 1 else [0], [f"{i:,}" for i in ([0, n_in - 1] if cols > 1 else [0])], fontsize=7)
    axes.set_yticks([0, rows - 1] if rows > 1 else [0], [f"{i:,}" for i in ([0, n_out - 1] if rows > 1 else [0])], fontsize=7)
    axes.set_xlabel("input unit", fontsize=8, labelpad=1)
    axes.set_ylabel("output unit", fontsize=8, labelpad=1)


def share(value: float) -> str:
    """A share as per cent, with enough digits that almost all and all differ: ``90 %``, ``99.95 %``."""
    if value in (0.0, 1.0):
        return f"{value:.0%}".replace("%", " %")
    digits = max(0, min(6, 1 - math.floor(math.log10(min(value, 1.0 - value) * 100))))
    text = f"{100 * value:.{digits}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) + " %"
