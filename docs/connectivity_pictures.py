"""The pictures of ``docs/connectivity.md``: every connectivity on one small layer, 64 outputs by 96 inputs at density 0.1."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sparsefleet.connections import check_sites
from sparsefleet.registry import Registry
from sparsefleet.rng import Rng
from sparsefleet.sparsity.distribute import total_nnz
from sparsefleet.trial.mask_picture import mask_picture
from sparsefleet.trial.spec import PluginRef

SHAPE = (64, 96)
NNZ = total_nnz(64 * 96, 0.1)
_SCALE = 4
SHOWN = {
    "random": ("random", {}),
    "fixed-fan-in": ("fixed-fan-in", {}),
    "small-world": ("small-world", {}),
    "small-world-2": ("small-world", {"exponent": 2.0}),
    "rows": ("rows", {}),
    "blocks": ("blocks", {"size": 4}),
}
"""Picture, plugin and its parameters."""


def pictures() -> dict[str, Image.Image]:
    """Images by path under the repository: white where there is a connection, outputs downwards, inputs to the right."""
    registry = Registry()
    drawn = {name: registry.build("connectivity", PluginRef(name=plugin, params=params)) for name, (plugin, params) in SHOWN.items()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "stripes.npy"
        np.save(file, _stripes())
        drawn["user"] = registry.build("connectivity", PluginRef(name="user", params={"file": str(file)}))
        found = {}
        for name, connectivity in drawn.items():
            sites = connectivity.draw_for("fc1", SHAPE, connectivity.nnz_of("fc1", SHAPE, NNZ), Rng(0, "connectivity", "fc1"))
            small = mask_picture(SHAPE, check_sites(sites, SHAPE, layer=name))
            found[f"docs/pictures/connectivity-{name}.png"] = small.resize((SHAPE[1] * _SCALE, SHAPE[0] * _SCALE), Image.Resampling.NEAREST)
    return found


def _stripes() -> np.ndarray:
    """``(2, nnz)`` sites of someone's own: output units in four groups, each with a stripe of its own."""
    row, col = torch.meshgrid(torch.arange(SHAPE[0]), torch.arange(SHAPE[1]), indexing="ij")
    stripe = (col - 2 * (row % 16) - 24 * (row // 16)) % 96 < 10
    return torch.nonzero(stripe).T.contiguous().numpy()
