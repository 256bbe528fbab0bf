"""Signed weight heat maps: blue below zero, white at zero, red above (source 001, slide 4)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from sparsefleet.report.pictures.style import aspect_of, panels, share, ticks
from sparsefleet.report.pictures.trial import LayerWeights, TrialData
from sparsefleet.trial.mask_picture import cell_sums

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

_MOST_LAYERS = 6
_CELLS = 128
_SATURATED = 0.99


def heat_maps(trial: TrialData) -> Figure | None:
    """A panel per layer, at most six, each with its own colour bar that is symmetric about 0; None where the weights are not there.

    A layer of more than 128 rows or columns is drawn in cells, each the mean of the connections in it. The colour saturates at the 99th percentile
    of what is drawn, so that one outlier does not bleach the rest.
    """
    layers = list(trial.weights.items())[:_MOST_LAYERS]
    if not layers:
        return None
    figure, axes = panels(len(layers), 3, 3.6, 3.2)
    for each, (name, layer) in zip(axes, layers, strict=True):
        cells = cell_means(layer).numpy()
        shown = torch.from_numpy(cells).abs()
        limit = float(torch.quantile(shown[shown > 0], _SATURATED)) if bool((shown > 0).any()) else 1.0
        drawn = each.imshow(cells, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest", aspect=aspect_of(cells))
        n_out, n_in = layer.shape[0], math.prod(layer.shape[1:])
        ticks(each, cells, (n_out, n_in))
        bar = figure.colorbar(drawn, ax=each, shrink=0.8, extend="both")
        bar.ax.tick_params(labelsize=7)
        bar.set_label("weight" if max(n_out, n_in) <= _CELLS else "mean weight of the cell's connections", fontsize=7)
        each.set_title(f"{name}: density {share(layer.density)}", fontsize=9)
    figure.suptitle(f"Trained weights\n{trial.label}", fontsize=9)
    return figure


def cell_means(layer: LayerWeights) -> Tensor:
    """``(rows, cols)`` float64, each at most 128: the mean weight of the connections in each cell, 0 where there is none."""
    flat = torch.arange(layer.n_sites) if layer.flat is None else layer.flat
    total = cell_sums(layer.shape, flat, _CELLS, layer.values)
    return total / cell_sums(layer.shape, flat, _CELLS).clamp(min=1)
