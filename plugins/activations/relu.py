"""ReLU: negative inputs become zero."""

from torch import nn

from sparsefleet import Activation, hookimpl


class Relu(Activation):
    """``max(x, 0)``."""

    name = "relu"
    paper = "doi:10.5555/3104322.3104425"
    rule = "y = max(x, 0)"

    def build(self, features: int) -> nn.Module:
        """torch.nn.ReLU."""
        return nn.ReLU()


@hookimpl
def sparsefleet_activations() -> list[type[Activation]]:
    """Registers this module's activation."""
    return [Relu]
