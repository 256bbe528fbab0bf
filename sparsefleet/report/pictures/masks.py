"""Mask images: the connections before training on top, those after it below, and the whole layer as density (sources 003 part 5, 000 section 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from sparsefleet.report.pictures.style import CONNECTION, ORIGINAL, binary, grid_of, panels, share, ticks
from sparsefleet.report.pictures.trial import TrialData
from sparsefleet.trial.mask_picture import cell_sizes, cell_sums

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from sparsefleet.trial.masks import LayerMask

CORNER = 64
_MOST_LAYERS = 6
_CELLS = 256


def masks(trial: TrialData) -> Figure | None:
    """A column per layer, at most six; None for a dense trial.

    The first two rows show the first 64 x 64 sites one by one, a convolution as the matrix ``(out, in * kh * kw)``; the last row the whole layer,
    darkest at twice the layer's mean density or more. Titles tell the share of zeros of the whole layer.
    """
    names = list(trial.masks)[:_MOST_LAYERS]
    if not names:
        return None
    first = min(trial.steps, default=None)
    original = trial.steps[first] if first is not None else {}
    figure, (above, middle, below) = grid_of(3, len(names), 2.6, 2.6)
    for i, name in enumerate(names):
        mask = trial.masks[name]
        if name in original:
            _corner(above[i], original[name], ORIGINAL, f"{name} at step {first}\n{_zeros(original[name])}")
        else:
            above[i].set_axis_off()
            above[i].set_title(f"{name}\nfirst connections not kept", fontsize=8)
        _corner(middle[i], mask, CONNECTION, f"{name}, trained\n{_zeros(mask)}")
        whole(below[i], mask, f"{name}, all of\n{_size(mask)}")
    figure.suptitle(f"Connections: the first {CORNER} × {CORNER} sites, and the whole layer\n{trial.label}", fontsize=9)
    return figure


def patterns(trials: Sequence[TrialData]) -> Figure | None:
    """The first sparse layer of several trials side by side, whole, as source 000 section 2 shows patterns; None where all are dense."""
    sparse = [trial for trial in trials if trial.masks]
    if not sparse:
        return None
    figure, axes = panels(len(sparse), 4, 2.8, 2.9)
    for each, trial in zip(axes, sparse, strict=True):
        name, mask = next(iter(trial.masks.items()))
        whole(each, mask, f"{trial.label}\n{name}: {_zeros(mask)}")
    figure.suptitle("The first layer's connections by method", fontsize=9)
    return figure


def corner(mask: LayerMask) -> Tensor:
    """``(rows, cols)`` bool, each at most 64: the layer's first sites."""
    n_in = math.prod(mask.shape[1:])
    rows, cols = min(CORNER, mask.shape[0]), min(CORNER, n_in)
    part = mask.flat[: int(torch.searchsorted(mask.flat, rows * n_in))]
    part = part[part % n_in < cols]
    seen = torch.zeros(rows, cols, dtype=torch.bool)
    seen[part // n_in, part % n_in] = True
    return seen


def whole(axes: Axes, mask: LayerMask, title: str) -> None:
    """Draws a layer of any size in at most 256 x 256 cells."""
    shape = (mask.shape[0], math.prod(mask.shape[1:]))
    density = (cell_sums(shape, mask.flat, _CELLS) / cell_sizes(shape, _CELLS)).numpy()
    mean = mask.flat.numel() / math.prod(shape)
    exact = max(shape) <= _CELLS
    binary(axes, density, CONNECTION, white=1.0 if exact else min(1.0, max(2 * mean, 1e-12)))
    ticks(axes, density, shape)
    axes.set_title(title, fontsize=8)


def _corner(axes: Axes, mask: LayerMask, colour: str, title: str) -> None:
    binary(axes, corner(mask).float().numpy(), colour)
    axes.set_title(title, fontsize=8)


def _zeros(mask: LayerMask) -> str:
    n_sites = math.prod(mask.shape)
    n_zero = n_sites - mask.flat.numel()
    return f"{share(n_zero / n_sites)} zeros ({n_zero:,} of {n_sites:,})"


def _size(mask: LayerMask) -> str:
    return " × ".join(f"{side:,}" for side in mask.shape)
