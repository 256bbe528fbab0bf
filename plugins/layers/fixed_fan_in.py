"""Fixed fan-in: every output unit has equally many inputs; the fast one (the constant fan-in of SRigL, arXiv 2305.02299)."""

from torch import Tensor, nn

from sparsefleet import Connections, Layer, hookimpl
from sparsefleet.nn import FixedFanInLinear


class FixedFanIn(Layer):
    """Equally many inputs for every output unit: balanced rows, shapes that rewiring keeps; a method's choices are projected onto it."""

    name = "fixed-fan-in"
    execution = "sparse_fixed_fan_in"
    topology = "constant-fan-in"
    index_bytes = 12.0

    def build(self, template: nn.Module, conn: Connections, bias: Tensor | None) -> FixedFanInLinear:
        """A layer with the weights of ``conn``, whose fan-in must be constant."""
        return FixedFanInLinear.from_connections(conn, bias)


@hookimpl
def sparsefleet_layers() -> list[type[Layer]]:
    """Registers this module's layer."""
    return [FixedFanIn]
