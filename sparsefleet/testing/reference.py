"""The simplest SparseModule there is, and small trainings of one layer to try a method in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsefleet.connections import Connections
from sparsefleet.nn.masked import MaskedLinear
from sparsefleet.nn.module import Remap, SparseModule
from sparsefleet.plugin import Pruner, Rewirer
from sparsefleet.rng import Rng
from sparsefleet.testing.samples import layer_of

SHAPE, NNZ = (12, 20), 60


class Reference(SparseModule):
    """The simplest SparseModule there is: values, and a dense matrix made of them at every call."""

    def __init__(self, conn: Connections) -> None:
        super().__init__()
        self._shape, self._flat = conn.shape, conn.flat
        self.values_ = nn.Parameter(conn.weight.clone())
        self._grad: Tensor | None = None
        self.layer_name = conn.layer

    def forward(self, x: Tensor) -> Tensor:
        dense = torch.zeros(self._shape[0] * self._shape[1], dtype=x.dtype).index_put((self._flat,), self.values_)
        if dense.requires_grad:
            dense.register_hook(self._keep)  # type: ignore[no-untyped-call]
        return x @ dense.view(self._shape).T

    def _keep(self, grad: Tensor) -> None:
        self._grad = grad.detach().view(self._shape)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self._shape

    @property
    def weight_parameter(self) -> nn.Parameter:
        return self.values_

    def flat_sites(self) -> Tensor:
        return self._flat

    def values(self) -> Tensor:
        return self.values_.detach()

    def grad_values(self) -> Tensor | None:
        return self.values_.grad

    def write_values(self, values: Tensor) -> None:
        self.values_.detach().copy_(values)

    def set_topology(self, remap: Remap, values: Tensor) -> None:
        self._flat = remap.flat
        self.values_.data = values.clone()

    def remap_slot(self, slot: Tensor, remap: Remap) -> Tensor:
        return remap.gather(slot)

    def watch_absent(self, on: bool) -> None:
        self._grad = None

    def best_absent(self, present: Tensor, k: int) -> Tensor:
        n_in = self._shape[1]
        return Connections("layer", self._shape, present // n_in, present % n_in, present.new_empty(0)).best_absent(k, self._grad)

    def best_absent_per_row(self, present: Tensor, counts: Tensor) -> Tensor:
        n_in = self._shape[1]
        conn = Connections("layer", self._shape, present // n_in, present % n_in, present.new_empty(0))
        return conn.best_absent_per_row(counts, self._grad)


def module_for(method: Pruner | Rewirer, conn: Connections | None = None) -> SparseModule:
    """A layer that the method can work on: one that stores dense values for those that need them."""
    conn = conn or layer_of(SHAPE, NNZ)
    if not method.needs_dense:
        return Reference(conn)
    module = MaskedLinear.from_connections(conn, None, template=nn.Linear(conn.n_in, conn.n_out, bias=False, device="meta"))
    module.layer_name = conn.layer
    return module


def by_connection(module: SparseModule, slot: Tensor) -> Tensor:
    """``(nnz,)``: an optimizer's slot, whether the layer stores connections or sites."""
    return slot if slot.numel() == module.nnz and slot.dim() == 1 else slot.reshape(-1)[module.flat_sites()]


def inputs(step: int = 0) -> Tensor:
    """``(8, n_in)`` float64, others at every step."""
    return Rng("training", step).normal(8 * SHAPE[1]).view(8, -1)
