"""Auto: whichever storage measures fastest for the layer's shape, density, batch, device and thread count."""

from pydantic import Field
from torch import Tensor, nn

from sparsefleet import Connections, Layer, hookimpl
from sparsefleet.nn import AutoLinear, SparseModule


class Auto(Layer):
    """fixed-fan-in, csr or masked, by a race that is run once on a machine, remembered and told."""

    name = "auto"
    execution = "auto"
    chooses = ("fixed-fan-in", "csr", "masked")
    index_bytes = 12.0

    batch_size: int = Field(64, ge=1, description="the batch that it is chosen for")

    def build(self, template: nn.Module, conn: Connections, bias: Tensor | None) -> SparseModule:
        """The fastest layer with the weights of ``conn``."""
        return AutoLinear.from_connections(conn, bias, batch_size=self.batch_size)


@hookimpl
def sparsefleet_layers() -> list[type[Layer]]:
    """Registers this module's layer."""
    return [Auto]
