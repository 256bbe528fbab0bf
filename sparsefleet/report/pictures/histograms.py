"""Weight histograms per layer, with the share of tiny weights (source 003, part 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sparsefleet.report.pictures.style import COLOURS, panels, share
from sparsefleet.report.pictures.trial import LayerWeights, TrialData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TINY = 0.1
_MOST_LAYERS = 6
_BINS = 101
_CHUNK = 1 << 22


def histograms(trial: TrialData) -> Figure | None:
    """A panel per layer, at most six: how many connections have which weight; None where the weights are not there.

    The share of weights below 0.1 by magnitude is told twice: of all sites, where an absent connection is a weight of zero (source 003 counts so),
    and of the connections only.
    """
    layers = list(trial.weights.items())[:_MOST_LAYERS]
    if not layers:
        return None
    figure, axes = panels(len(layers), 3, 3.6, 2.9)
    for each, (name, layer) in zip(axes, layers, strict=True):
        most = float(layer.values.abs().max()) if layer.values.numel() else 0.0
        most = most or 1.0
        count = torch.histc(layer.values.detach().cpu().float(), _BINS, -most, most)
        edges = torch.linspace(-most, most, _BINS + 1)
        each.bar(edges[:-1].numpy(), count.numpy(), width=2 * most / _BINS, align="edge", color=COLOURS[0])
        each.axvline(0.0, color="#000000", linewidth=0.8, linestyle="--")
        of_sites, of_connections = tiny_shares(layer)
        text = f"|w| < {TINY}:\n{share(of_connections)} of connections"
        each.text(0.97, 0.95, text + (f"\n{share(of_sites)} of sites" if layer.flat is not None else ""), **_box(each))
        each.set_title(f"{name}: {layer.values.numel():,} connections of {layer.n_sites:,}", fontsize=8)
        each.set_xlabel("weight", fontsize=8)
        each.set_ylabel("connections", fontsize=8)
        each.set_ylim(0, float(count.max()) * 1.35 + 1)
        each.tick_params(labelsize=7)
    figure.suptitle(f"Trained weights by layer\n{trial.label}", fontsize=9)
    return figure


def tiny_shares(layer: LayerWeights) -> tuple[float, float]:
    """Shares of weights below 0.1 by magnitude: of all sites, absent ones as zeros, and of the connections; 0 of none."""
    nnz = layer.values.numel()
    tiny = sum(int((part.abs() < TINY).sum()) for part in torch.split(layer.values, _CHUNK))
    return (tiny + layer.n_sites - nnz) / layer.n_sites, tiny / nnz if nnz else 0.0


def _box(axes: Axes) -> dict[str, Any]:
    box = {"boxstyle": "round", "facecolor": "#ffffff", "edgecolor": "#808080", "alpha": 0.9}
    return {"transform": axes.transAxes, "ha": "right", "va": "top", "fontsize": 7, "bbox": box}
