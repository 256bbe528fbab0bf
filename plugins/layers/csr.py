"""CSR storage with a cached transpose: arbitrary patterns, memory and time by nnz, values an ordinary Parameter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsefleet import Connections, Layer, hookimpl
from sparsefleet.nn import Remap, SparseModule
from sparsefleet.ops.csr import CsrPattern, csr_linear, csr_pattern, rows_of, top_absent_products


class CsrLinear(SparseModule):
    """A linear layer in CSR.

    Args:
        conn: its connections, ascending, without duplicates.
        bias: ``(n_out,)`` or None.
    """

    execution = "sparse_csr"

    def __init__(self, conn: Connections, bias: Tensor | None) -> None:
        super().__init__()
        self.n_out, self.n_in = conn.shape
        self.values_ = nn.Parameter(conn.weight.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        for field in ("crow", "col", "t_crow", "t_col", "t_order"):
            self.register_buffer(field, torch.empty(0))
        self._store(conn.row, conn.col)
        self._watching = False
        self._seen: list[Tensor] = []

    def _store(self, row: Tensor, col: Tensor) -> None:
        pattern = csr_pattern(row, col, (self.n_out, self.n_in))
        self.crow, self.col, self.t_crow, self.t_col, self.t_order = pattern[1:]

    @property
    def pattern(self) -> CsrPattern:
        """The stored pattern."""
        return CsrPattern((self.n_out, self.n_in), self.crow, self.col, self.t_crow, self.t_col, self.t_order)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.n_out, self.n_in

    @property
    def weight_parameter(self) -> nn.Parameter:
        return self.values_

    @property
    def weight(self) -> Tensor:
        """The weight as a sparse CSR view, without gradient."""
        return torch.sparse_csr_tensor(self.crow, self.col, self.values_.detach(), (self.n_out, self.n_in), check_invariants=False)

    def forward(self, x: Tensor) -> Tensor:
        out = csr_linear(x, self.values_, self.pattern, self.bias)
        if self._watching and out.requires_grad:
            self._seen = [x.detach().reshape(-1, self.n_in)]
            out.register_hook(self._keep)
        return out

    def _keep(self, grad: Tensor) -> None:
        self._seen.append(grad.detach().reshape(-1, self.n_out))

    def flat_sites(self) -> Tensor:
        return rows_of(self.crow, self.col.numel()) * self.n_in + self.col

    def values(self) -> Tensor:
        return self.values_.detach()

    def grad_values(self) -> Tensor | None:
        return self.values_.grad

    def write_values(self, values: Tensor) -> None:
        if values.data_ptr() != self.values_.data_ptr():
            self.values_.detach().copy_(values)

    def set_topology(self, remap: Remap, values: Tensor) -> None:
        self._store(remap.flat // self.n_in, remap.flat % self.n_in)
        if values.shape == self.values_.shape:
            self.values_.detach().copy_(values)
        else:
            self.values_.data = values.clone()

    def remap_slot(self, slot: Tensor, remap: Remap) -> Tensor:
        return remap.gather(slot)

    def watch_absent(self, on: bool) -> None:
        self._watching = on
        self._seen = []

    def best_absent(self, present: Tensor, k: int) -> Tensor:
        if len(self._seen) != 2:
            raise RuntimeError(f"layer {self.layer_name!r}: no watched backward pass has run")
        x, grad = self._seen
        return top_absent_products(x.to(grad.dtype), grad, present, k)

    def extra_repr(self) -> str:
        return f"in_features={self.n_in}, out_features={self.n_out}, nnz={self.nnz}, bias={self.bias is not None}"


class Csr(Layer):
    """CSR with a cached transpose."""

    name = "csr"
    execution = "sparse_csr"

    def build(self, template: nn.Module, conn: Connections, bias: Tensor | None) -> CsrLinear:
        """A CSR layer with the weights of ``conn``."""
        return CsrLinear(conn, bias)


@hookimpl
def sparsefleet_layers() -> list[type[Layer]]:
    """Registers the CSR layer."""
    return [Csr]
