"""A threshold: what does not exceed it becomes zero."""

from pydantic import Field
from torch import nn

from sparsefleet import Activation, hookimpl


class Threshold(Activation):
    """Passes on the units above ``threshold``, unchanged, and zeroes the rest; with 0 it is relu.

    How many are above it is up to the network: the share of zeros is measured, not set.
    """

    name = "threshold"
    paper = "torch.nn.Threshold"
    rule = "y = x where x > threshold, else 0"
    cannot = "A given activation sparsity: use top-k or k-winners."
    sparse = True

    threshold: float = Field(0.1, ge=0, description="what a unit must exceed")

    def build(self, features: int) -> nn.Module:
        """torch.nn.Threshold with 0 below."""
        return nn.Threshold(self.threshold, 0.0)


@hookimpl
def sparsefleet_activations() -> list[type[Activation]]:
    """Registers this module's activation."""
    return [Threshold]
