"""Bounds of initial weights: those of ``torch.nn.Linear``, unless a module has others because it stands for a part of something else."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def spread(draws: Tensor, module: nn.Module, n_in: int, *, bias: bool = False) -> Tensor:
    """``draws`` from [-1, 1), in place, over the module's initial bound: of its ``init_bounds`` (weight, bias) or else ±1/sqrt(n_in)."""
    bounds: tuple[float, float] | None = getattr(module, "init_bounds", None)
    return draws.div_(math.sqrt(n_in)) if bounds is None else draws.mul_(bounds[bias])


def linear_within(
    sides: tuple[int, int], bounds: tuple[float, float], *, bias: bool, device: torch.device | str | None, dtype: torch.dtype | None
) -> nn.Linear:
    """A Linear that says its own bounds, with weights drawn in them by torch's generator.

    Args:
        sides: ``(n_out, n_in)``.
        bounds: of the weight and of the bias; 0 for zeros.
    """
    linear = nn.Linear(sides[1], sides[0], bias=bias, device=device, dtype=dtype)
    linear.init_bounds = bounds  # type: ignore[assignment]
    nn.init.uniform_(linear.weight, -bounds[0], bounds[0])
    if bias:
        nn.init.uniform_(linear.bias, -bounds[1], bounds[1])
    return linear
