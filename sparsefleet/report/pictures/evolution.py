"""How a layer's topology evolves: its connections over the steps, and what was removed and added from first to last (source 002, sections 1, 6)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from sparsefleet.errors import UserError, did_you_mean
from sparsefleet.report.pictures.masks import whole
from sparsefleet.report.pictures.style import ADDED, KEPT, REMOVED, aspect_of, panels, ticks
from sparsefleet.report.pictures.trial import TrialData
from sparsefleet.trial.mask_picture import cell_sizes, cell_sums

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from sparsefleet.trial.masks import LayerMask

MOST_PANELS = 12
_CELLS = 256


def evolution(trial: TrialData, layer: str | None = None) -> Figure | None:
    """The connections of one layer over the training, at most 11 steps, and the difference map of the first and the last; None with fewer than two steps.

    Args:
        layer: default: the first that was kept at every step.

    Raises:
        UserError: ``layer`` was not.
    """
    found = _shown(trial, layer)
    if found is None:
        return None
    name, steps = found
    shown = chosen(list(steps), MOST_PANELS - 1)
    figure, axes = panels(len(shown) + 1, 4, 2.6, 2.7)
    for each, step in zip(axes, shown, strict=False):
        whole(each, steps[step], f"step {step:,}: {steps[step].flat.numel():,} connections")
    before, after = steps[shown[0]], steps[shown[-1]]
    kept, removed, added = sides(before, after)
    picture = difference(before, after).numpy()
    axes[-1].imshow(picture, interpolation="nearest", aspect=aspect_of(picture))
    ticks(axes[-1], picture, (before.shape[0], math.prod(before.shape[1:])))
    axes[-1].set_title(
        f"step {shown[0]:,} → {shown[-1]:,}: {removed.numel():,} removed (red),\n{added.numel():,} added (blue), {kept.numel():,} kept",
        fontsize=8,
    )
    figure.suptitle(f"Topology of {name} over the training\n{trial.label}", fontsize=9)
    return figure


def sides(before: LayerMask, after: LayerMask) -> tuple[Tensor, Tensor, Tensor]:
    """``(n,)`` int64 positions each: in both masks, in the first only (removed), in the second only (added)."""
    stays = torch.isin(before.flat, after.flat, assume_unique=True)
    comes = ~torch.isin(after.flat, before.flat, assume_unique=True)
    return before.flat[stays], before.flat[~stays], after.flat[comes]


def difference(before: LayerMask, after: LayerMask) -> Tensor:
    """``(rows, cols, 3)`` in [0, 1]: a site is red where its connection was removed, blue where one was added, grey where it stayed, else white.

    A layer of more than 256 rows or columns is drawn in cells that mix the colours of their sites; full colour stands for twice the mean density.
    """
    shape = before.shape
    sizes = cell_sizes(shape, _CELLS)
    exact = bool((sizes == 1).all())
    parts = sides(before, after)
    most = 1.0 if exact else 2.0 * sum(part.numel() for part in parts) / math.prod(shape)
    picture = torch.ones(*sizes.shape, 3, dtype=torch.float64)
    for part, colour in zip(parts, (KEPT, REMOVED, ADDED), strict=True):
        strength = (cell_sums(shape, part, _CELLS) / sizes / max(most, 1e-12)).clamp(max=1.0)
        picture -= strength[..., None] * (1.0 - _rgb(colour))
    return picture.clamp(0.0, 1.0)


def chosen(steps: list[int], most: int) -> list[int]:
    """At most ``most`` of the ascending steps, spread evenly, the first and the last among them."""
    if len(steps) <= most:
        return steps
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]


def _shown(trial: TrialData, layer: str | None) -> tuple[str, dict[int, LayerMask]] | None:
    """The layer and its connections by step: the one asked for, else the first that was kept at every step."""
    steps = trial.steps
    if len(steps) < 2:
        return None
    always = [name for name in trial.masks if all(name in masks for masks in steps.values())]
    if layer is not None and layer not in always:
        raise UserError(f"the connections of layer {layer!r} were not kept over the steps", fix=did_you_mean(layer, always))
    name = layer or next(iter(always), None)
    return None if name is None else (name, {step: masks[name] for step, masks in steps.items()})


def _rgb(colour: str) -> Tensor:
    return torch.tensor([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)], dtype=torch.float64)
