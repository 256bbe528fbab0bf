"""CSR with a cached transpose: arbitrary patterns, memory and time by nnz, values an ordinary Parameter."""

from torch import Tensor, nn

from sparsefleet import Connections, Layer, hookimpl
from sparsefleet.nn import CsrLinear


class Csr(Layer):
    """CSR with a cached transpose, multiplied by our kernels."""

    name = "csr"
    execution = "sparse_csr"
    index_bytes = 12.0

    def build(self, template: nn.Module, conn: Connections, bias: Tensor | None) -> CsrLinear:
        """A CSR layer with the weights of ``conn``."""
        return CsrLinear.from_connections(conn, bias)


@hookimpl
def sparsefleet_layers() -> list[type[Layer]]:
    """Registers this module's layer."""
    return [Csr]
