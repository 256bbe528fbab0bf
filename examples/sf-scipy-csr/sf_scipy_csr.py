"""A layer on another library: SciPy's compressed sparse rows (Virtanen et al., Nature Methods 2020, doi:10.1038/s41592-019-0686-2)."""

import numpy as np
import torch
from pydantic import Field
from scipy.sparse import csr_array
from sparsefleet import Connections, Layer, hookimpl
from sparsefleet.nn import CooLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Product(torch.autograd.Function):
    """X W^T by SciPy, and its gradients."""

    @staticmethod
    def forward(ctx, x: Tensor, values: Tensor, layer: "ScipyCsrLinear") -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x, values)
        return torch.from_numpy(layer.matrix(values) @ x.T.numpy()).T

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, values = ctx.saved_tensors
        x, out, by_values = np.ascontiguousarray(x.T), np.ascontiguousarray(grad.T), torch.empty_like(values)
        row, col = ctx.layer.row.numpy(), ctx.layer.col.numpy()
        for first in range(0, len(values), ctx.layer.block):  # SciPy has no product sampled at a matrix' own places
            at = slice(first, first + ctx.layer.block)
            np.einsum("cb,cb->c", out[row[at]], x[col[at]], out=by_values.numpy()[at])
        del x  # before there is as much again
        return torch.from_numpy(ctx.layer.matrix(values).T @ out).T, by_values, None


class ScipyCsrLinear(CooLinear):
    """The matrix shares the Parameter's memory; its indices are made once per topology."""

    execution = "sparse_scipy_csr"

    def __init__(self, *sizes, block: int = 4096, **options) -> None:
        super().__init__(*sizes, **options)
        self.block = block

    def matrix(self, values: Tensor) -> csr_array:
        if "indices" not in self.made:
            made = csr_array((np.ones(len(values)), (self.row.numpy(), self.col.numpy())), shape=(self.out_features, self.in_features))
            self.made["indices"] = made.indices, made.indptr
        return csr_array((values.detach().numpy(), *self.made["indices"]), shape=(self.out_features, self.in_features))

    def product(self, x: Tensor, values: Tensor) -> Tensor:
        return Product.apply(x, values, self)


class ScipyCsrLayer(Layer):
    """``scipy.sparse.csr_array`` times the batch, forward and for the input's gradient; on the CPU, in one thread."""

    name = "scipy-csr"
    paper = "doi:10.1038/s41592-019-0686-2, scipy.sparse"
    rule = "Y = (W @ X^T)^T; dL/dX = (W^T @ G^T)^T; dL/dw_k = sum over the batch of G[:, row_k] X[:, col_k]."
    cannot = (
        "It is no fast layer: SciPy uses one thread and no vector units, and checks a matrix whenever one is made. SciPy has no sampled product, so the "
        "gradient by the values is gathered in NumPy, block by block. First derivatives only; torch.compile does not see into it."
    )
    execution, devices, requires = "sparse_scipy_csr", ("cpu",), "scipy"
    index_bytes = 20.0  # row and column of int64, SciPy's column of int32
    block: int = Field(4096, ge=1, description="connections gathered at a time for the gradient by the values; memory, times the batch")

    def build(self, template: nn.Module, conn: Connections, bias: Tensor | None) -> ScipyCsrLinear:
        return ScipyCsrLinear.from_connections(conn, bias, block=self.block)


@hookimpl
def sparsefleet_layers() -> list[type[Layer]]:
    return [ScipyCsrLayer]
