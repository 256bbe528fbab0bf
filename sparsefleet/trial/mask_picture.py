"""A picture of which connections a layer has: one grey cell per site, or per rectangle of sites where the layer is large."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

_CHUNK = 1 << 20


def mask_picture(shape: Sequence[int], flat: Tensor, max_side: int = 256) -> Image.Image:
    """Outputs run downwards, inputs to the right; a convolution is seen as the matrix ``(out, in * kh * kw)``.

    A cell's grey is its density; white is a density of twice the layer's mean or more, so that structure shows at any density. A layer
    of at most ``max_side`` rows and columns is drawn site by site, white where there is a connection. Short sides are stretched to a
    quarter of ``max_side``. Equal masks give equal pictures; memory is O(cells), never out x in.

    Args:
        shape: of the weight.
        flat: ``(nnz,)`` int64 positions in it.
        max_side: most cells, and pixels, per side.
    """
    density = cell_sums(shape, flat, max_side) / cell_sizes(shape, max_side)
    white = min(1.0, max(2.0 * flat.numel() / math.prod(shape), torch.finfo(torch.float32).tiny))
    grey = (density / white).clamp(max=1.0).mul(255).round().to(torch.uint8)
    for axis in (0, 1):
        grey = grey.repeat_interleave(max(1, max_side // 4 // grey.shape[axis]), dim=axis)
    return Image.fromarray(grey.numpy())


def picture_png(shape: Sequence[int], flat: Tensor, max_side: int = 256) -> bytes:
    """The picture as PNG."""
    out = io.BytesIO()
    mask_picture(shape, flat, max_side).save(out, format="PNG")
    return out.getvalue()


def cell_sums(shape: Sequence[int], flat: Tensor, max_side: int, values: Tensor | None = None) -> Tensor:
    """``(rows, cols)``, each at most ``max_side``: how many connections lie in each cell (int64), or the sum of their values (float64).

    Args:
        values: ``(nnz,)``.
    """
    n_out, n_in = int(shape[0]), math.prod(shape[1:])
    rows, cols = min(n_out, max_side), min(n_in, max_side)
    total = torch.zeros(rows * cols, dtype=torch.int64 if values is None else torch.float64)
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK].detach().cpu()
        cell = (part // n_in) * rows // n_out * cols + (part % n_in) * cols // n_in
        weights = None if values is None else values[start : start + _CHUNK].detach().cpu().double()
        total += torch.bincount(cell, weights, minlength=rows * cols)
    return total.view(rows, cols)


def cell_sizes(shape: Sequence[int], max_side: int) -> Tensor:
    """``(rows, cols)`` int64: sites of each cell of ``cell_sums``."""
    n_out, n_in = int(shape[0]), math.prod(shape[1:])
    return torch.outer(_cell_sizes(n_out, min(n_out, max_side)), _cell_sizes(n_in, min(n_in, max_side)))


def _cell_sizes(sites: int, cells: int) -> Tensor:
    """``(cells,)`` how many of ``sites`` positions p have ``p * cells // sites == cell``."""
    first = -(-torch.arange(cells + 1) * sites // cells)
    return torch.diff(first)
