"""The first convolution's kernels, and the magnitude of every channel (source 001, slides 9 and 10)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from sparsefleet.report.pictures.style import COLOURS, share
from sparsefleet.report.pictures.trial import LayerWeights, TrialData

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

_MOST_CHANNELS = 64
_MOST_SITES = 1 << 22


def convolutions(trial: TrialData) -> Figure | None:
    """Left the kernels of the first convolution, each the mean of |w| over its input channels; right a bar per output channel with its sum of |w|.

    A channel without connections is marked on both sides. None where there is no convolution; at most 64 channels are drawn as kernels, all as bars.
    """
    found = next(((name, layer) for name, layer in trial.weights.items() if len(layer.shape) == 4 and layer.n_sites <= _MOST_SITES), None)
    if found is None:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    name, layer = found
    kernels, magnitude = kernel_means(layer)[:_MOST_CHANNELS], channel_magnitudes(layer)
    figure = Figure(figsize=(10.0, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = (part for row in figure.subfigures(1, 2, squeeze=False) for part in row)
    columns = math.ceil(math.sqrt(len(kernels)))
    grid = left.subplots(math.ceil(len(kernels) / columns), columns, squeeze=False)
    most = float(kernels.max()) or 1.0
    for i, axes in enumerate(axes for row in grid for axes in row):
        axes.set_axis_off()
        if i < len(kernels):
            drawn = axes.imshow(kernels[i].numpy(), cmap="viridis", vmin=0.0, vmax=most, interpolation="nearest")
            axes.set_title(f"{i}" + (" gone" if not magnitude[i] else ""), fontsize=6, pad=1)
    bar = left.colorbar(drawn, ax=grid, shrink=0.7)
    bar.set_label("mean |w| over input channels", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    axes = right.subplots()
    axes.bar(range(len(magnitude)), magnitude.numpy(), color=COLOURS[0])
    gone = [i for i, value in enumerate(magnitude.tolist()) if not value]
    axes.plot(gone, [0.0] * len(gone), "x", color=COLOURS[1], clip_on=False, label=f"without connections: {len(gone)}")
    axes.legend(fontsize=8)
    axes.set_xlabel("output channel", fontsize=8)
    axes.set_ylabel("sum of |w|", fontsize=8)
    axes.tick_params(labelsize=7)
    shape = " × ".join(map(str, layer.shape))
    figure.suptitle(f"First convolution, {name} ({shape}), density {share(layer.density)}\n{trial.label}", fontsize=9)
    return figure


def kernel_means(layer: LayerWeights) -> Tensor:
    """``(out, kh, kw)`` float64: the mean of |w| over input channels, absent connections as zeros."""
    return _dense(layer).abs().mean(dim=1)


def channel_magnitudes(layer: LayerWeights) -> Tensor:
    """``(out,)`` float64: the sum of |w| of every output channel."""
    return _dense(layer).abs().sum(dim=(1, 2, 3))


def _dense(layer: LayerWeights) -> Tensor:
    full = torch.zeros(layer.n_sites, dtype=torch.float64)
    full[slice(None) if layer.flat is None else layer.flat.cpu()] = layer.values.detach().cpu().double()
    return full.view(layer.shape)
