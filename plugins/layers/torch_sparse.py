"""torch-sparse: COO through the package of that name, the engine of the source package, kept as a peer."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from sparsefleet import Connections, Layer, hookimpl
from sparsefleet.nn import TorchSparseLinear


class TorchSparse(Layer):
    """``torch_sparse.spmm`` or ``SparseTensor @``; needs the extra ``torch-sparse``."""

    name = "torch-sparse"
    execution = "torch_sparse"
    requires = "torch_sparse"
    index_bytes = 32.0

    engine: Literal["spmm", "tensor"] = Field("spmm", description="spmm: gather and scatter; tensor: SparseTensor @, CSR inside")

    def build(self, template: nn.Module, conn: Connections, bias: Tensor | None) -> TorchSparseLinear:
        """A layer with the weights of ``conn``."""
        return TorchSparseLinear.from_connections(conn, bias, engine=self.engine)


@hookimpl
def sparsefleet_layers() -> list[type[Layer]]:
    """Registers this module's layer."""
    return [TorchSparse]
