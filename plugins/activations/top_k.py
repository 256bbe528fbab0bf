"""Top-k: in every sample only the k largest units speak."""

import torch
from pydantic import Field
from sparsefleet_plugins.activations.k_winners import winners
from torch import Tensor, nn

from sparsefleet import Activation, hookimpl


class TopK(Activation):
    """Passes on the k largest units of each sample, of all its channels and places, and zeroes the rest; of equal ones the earlier win.

    It is k-winners without boosting: nothing is counted, and training and evaluation do the same. A unit may win with a negative value
    where fewer than k are positive.
    """

    name = "top-k"
    paper = "arXiv 1312.5663, section 2 (k-sparse autoencoders)"
    rule = "y = x where x is among the k largest of its sample, else 0; k = round(density n)"
    cannot = "Giving idle units a turn: use k-winners."
    sparse = True

    density: float = Field(0.35, gt=0, le=1, description="share of units that are passed on")

    def build(self, features: int) -> nn.Module:
        """The module for any number of units."""
        return TopKModule(self.density)


class TopKModule(nn.Module):
    """Inputs ``(batch, features)`` or ``(batch, features, height, width)``."""

    def __init__(self, density: float) -> None:
        super().__init__()
        self.density = density

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as ``x``, with k non-zero units per sample at most."""
        flat = x.flatten(1)
        k = max(1, round(self.density * flat.shape[1]))
        return torch.where(winners(flat.detach(), k).view_as(x), x, 0.0)

    def extra_repr(self) -> str:
        """``density``, for listings."""
        return f"density={self.density:g}"


@hookimpl
def sparsefleet_activations() -> list[type[Activation]]:
    """Registers this module's activation."""
    return [TopK]
