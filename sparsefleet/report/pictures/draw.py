"""All pictures of a trial or a sweep, by name, as PNG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparsefleet.report.pictures.accuracy import accuracy
from sparsefleet.report.pictures.convolutions import convolutions
from sparsefleet.report.pictures.curves import curves
from sparsefleet.report.pictures.densities import densities
from sparsefleet.report.pictures.evolution import evolution
from sparsefleet.report.pictures.heat_maps import heat_maps
from sparsefleet.report.pictures.histograms import histograms
from sparsefleet.report.pictures.masks import masks, patterns
from sparsefleet.report.pictures.style import png
from sparsefleet.report.pictures.trial import TrialData

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OF_TRIAL: Mapping[str, Callable[[TrialData], Figure | None]] = {
    "masks": masks,
    "weights": heat_maps,
    "histograms": histograms,
    "convolution": convolutions,
    "evolution": evolution,
    "curves": lambda trial: curves([trial]),
    "density": densities,
}
"""Pictures of one trial."""
OF_SWEEP = ("accuracy", "curves", "patterns")
"""Pictures of a whole sweep."""
KINDS = tuple(dict.fromkeys((*OF_TRIAL, *OF_SWEEP)))


def trial_pictures(trial: TrialData, kinds: Sequence[str] = KINDS, layer: str | None = None) -> Iterator[tuple[str, bytes]]:
    """Name and PNG of each picture that the trial has, e.g. ``masks.png``.

    Args:
        layer: whose evolution is drawn.

    Raises:
        UserError: no connections of ``layer`` were kept over the steps.
    """
    for kind, draw in OF_TRIAL.items():
        figure = draw(trial) if kind in kinds else None
        if kind == "evolution" and figure is not None and layer is not None:
            figure = evolution(trial, layer)
        if figure is not None:
            yield f"{kind}.png", png(figure)


def sweep_pictures(
    rows: Sequence[Mapping[str, Any]], trials: Sequence[TrialData], kinds: Sequence[str] = KINDS
) -> Iterator[tuple[str, bytes]]:
    """Name and PNG of each picture of a sweep.

    Args:
        rows: of ``sparsefleet.report.compare.rows``.
        trials: one per row, for what is drawn side by side.
    """
    draws: dict[str, Callable[[], Figure | None]] = {
        "accuracy": lambda: accuracy(rows),
        "curves": lambda: curves(trials),
        "patterns": lambda: patterns(trials),
    }
    for kind in OF_SWEEP:
        figure = draws[kind]() if kind in kinds else None
        if figure is not None:
            yield f"{kind}.png", png(figure)
