"""Density per layer, as bars: what was asked, what is there, and what is on a path from an input to an output."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sparsefleet.report.pictures.style import COLOURS, grid_of, share
from sparsefleet.report.pictures.trial import TrialData

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_LAYERS = 40


def densities(trial: TrialData) -> Figure | None:
    """A bar per layer, input to output, at most 40, with its connections; None where the record has no counts."""
    layers = ((trial.record.get("counts") or {}).get("layers") or [])[:_MOST_LAYERS]
    if not layers:
        return None
    sites = [math.prod(layer["shape"]) for layer in layers]
    figure, ((axes,),) = grid_of(1, 1, max(5.0, 0.45 * len(layers) + 2.0), 3.4)
    width, at = 0.27, range(len(layers))
    kinds = [("asked", "nnz_asked"), ("realised", "nnz"), ("effective", "nnz_effective")]
    known = [(label, key) for label, key in kinds if all(layer.get(key) is not None for layer in layers)]
    for i, (label, key) in enumerate(known):
        heights = [100 * layer[key] / n for layer, n in zip(layers, sites, strict=True)]
        axes.bar([x + (i - (len(known) - 1) / 2) * width for x in at], heights, width, color=COLOURS[i], label=label)
    for x, layer, n in zip(at, layers, sites, strict=True):
        if len(layers) <= 8:
            axes.annotate(
                f"{share(layer['nnz'] / n)}\n{layer['nnz']:,}",
                (x, 100 * layer["nnz"] / n),
                (0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=7,
            )
    whole = sum(layer["nnz"] for layer in layers) / sum(sites)
    axes.axhline(100 * whole, color="#000000", linewidth=0.8, linestyle="--", label=f"together {share(whole)}")
    axes.set_xticks(list(at), [layer["name"] for layer in layers], rotation=0 if len(layers) <= 8 else 90, fontsize=7)
    axes.set_ylim(0, 1.25 * max(100 * layer["nnz"] / n for layer, n in zip(layers, sites, strict=True)))
    axes.set_ylabel("density (%)", fontsize=8)
    axes.set_xlabel("layer, input to output", fontsize=8)
    axes.tick_params(labelsize=7)
    figure.legend(loc="outside lower center", fontsize=7, ncols=4)
    figure.suptitle(f"Density per layer\n{trial.label}", fontsize=9)
    return figure
