"""Masked: dense storage times a boolean mask, the reference for correctness, never faster than dense."""

from torch import Tensor, nn

from sparsefleet import Connections, Layer, hookimpl
from sparsefleet.nn import MaskedModule


class Masked(Layer):
    """Dense weight times a boolean mask; the reference for correctness."""

    name = "masked"
    execution = "masked_dense"
    kinds = ("Linear", "Conv2d", "Embedding")
    stores_dense = True

    def build(self, template: nn.Module, conn: Connections, bias: Tensor | None) -> MaskedModule:
        """A masked module with the weights of ``conn``."""
        return MaskedModule.from_connections(conn, bias, template=template)


@hookimpl
def sparsefleet_layers() -> list[type[Layer]]:
    """Registers this module's layer."""
    return [Masked]
