"""Block: whole tiles of connections, multiplied as small dense matrices (arXiv 1711.02782)."""

from pydantic import Field
from torch import Tensor, nn

from sparsefleet import Connections, Layer, hookimpl
from sparsefleet.nn import BlockLinear


class Block(Layer):
    """Tiles of ``size`` outputs by ``size`` inputs; whole tiles are pruned, dropped and grown."""

    name = "block"
    execution = "sparse_block"
    topology = "block"
    index_bytes = 9.0  # the place of every connection, and the tiles' own

    size: int = Field(4, ge=2, le=256, description="units per side of a tile")

    @property
    def tile(self) -> int:
        """``size``."""
        return self.size

    def build(self, template: nn.Module, conn: Connections, bias: Tensor | None) -> BlockLinear:
        """A layer with the weights of ``conn``, which must fill whole tiles."""
        return BlockLinear.from_connections(conn, bias, block=self.size)


@hookimpl
def sparsefleet_layers() -> list[type[Layer]]:
    """Registers this module's layer."""
    return [Block]
