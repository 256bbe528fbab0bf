"""2:4: of every four inputs two are connected, for the sparse tensor cores of CUDA devices (arXiv 2104.08378)."""

from torch import Tensor, nn

from sparsefleet import Connections, Layer, hookimpl
from sparsefleet.nn import TwoFourLinear


class TwoFour(Layer):
    """Two of every four inputs, in half precision, on CUDA alone; the product is accelerated, its gradients are dense."""

    name = "two-four"
    execution = "sparse_two_four"
    topology = "n:m"
    devices = ("cuda",)
    n_of_m = (2, 4)
    multiple_of = 64
    index_bytes = 1.0

    def build(self, template: nn.Module, conn: Connections, bias: Tensor | None) -> TwoFourLinear:
        """A layer with the weights of ``conn``, which must be 2:4."""
        return TwoFourLinear.from_connections(conn, bias)


@hookimpl
def sparsefleet_layers() -> list[type[Layer]]:
    """Registers this module's layer."""
    return [TwoFour]
