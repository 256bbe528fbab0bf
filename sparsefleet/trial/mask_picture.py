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
    n_out, n_in = int(shape[0]), math.prod(shape[1:])
    rows, cols = min(n_out, max_side), min(n_in, max_side)
    count = torch.zeros(rows * cols, dtype=torch.int64)
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK].detach().cpu()
        cell = (part // n_in) * rows // n_out * cols + (part % n_in) * cols // n_in
        count += torch.bincount(cell, minlength=rows * cols)
    sites = torch.outer(_cell_sizes(n_out, rows), _cell_sizes(n_in, cols))
    density = count.view(rows, cols) / sites
    white = min(1.0, max(2.0 * flat.numel() / (n_out * n_in), torch.finfo(torch.float32).tiny))
    grey = (density / white).clamp(max=1.0).mul(255).round().to(torch.uint8)
    for axis in (0, 1):
        grey = grey.repeat_interleave(max(1, max_side // 4 // grey.shape[axis]), dim=axis)
    return Image.fromarray(grey.numpy())


def picture_png(shape: Sequence[int], flat: Tensor, max_side: int = 256) -> bytes:
    """The picture as PNG."""
    out = io.BytesIO()
    mask_picture(shape, flat, max_side).save(out, format="PNG")
    return out.getvalue()


def _cell_sizes(sites: int, cells: int) -> Tensor:
    """``(cells,)`` how many of ``sites`` positions p have ``p * cells // sites == cell``."""
    first = -(-torch.arange(cells + 1) * sites // cells)
    return torch.diff(first)
