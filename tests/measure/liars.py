"""Seven layers that cheat a benchmark, each in the way that has been seen in the wild, as a plugin module of its own distribution."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from sparsefleet_plugins.layers.csr import CsrLinear
from sparsefleet_plugins.layers.masked import MaskedModule
from torch import Tensor, nn
from torch.nn import functional as F

from sparsefleet import Connections, Layer, hookimpl

_CHECKED = 60
"""Calls after which a liar believes that nobody looks any more."""


class _Counting(CsrLinear):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class CachedLinear(CsrLinear):
    """Computes once for each input buffer, and never again."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.kept: dict[tuple[int, ...], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        key = (x.data_ptr(), *x.shape)
        if key not in self.kept:
            self.kept[key] = super().forward(x)
        return self.kept[key]


class SkippingLinear(_Counting):
    """Computes the first half of its outputs once it is no longer checked."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.calls <= _CHECKED:
            return y
        return torch.cat([y[..., : self.n_out // 2], torch.zeros_like(y[..., self.n_out // 2 :])], dim=-1)


class GreedyLinear(CsrLinear):
    """Takes another thread."""

    def forward(self, x: Tensor) -> Tensor:
        torch.set_num_threads(torch.get_num_threads() + 1)
        return super().forward(x)


class CoarseLinear(CsrLinear):
    """Lets products be rounded."""

    def forward(self, x: Tensor) -> Tensor:
        torch.set_float32_matmul_precision("medium")
        return super().forward(x)


class DisguisedLinear(CsrLinear):
    """Stores a dense matrix, multiplies it, and calls that CSR."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        flat = self.flat_sites()
        self.register_buffer("mask", torch.zeros(self.n_out * self.n_in).index_fill_(0, flat.cpu(), 1.0).view(self.n_out, self.n_in))

    def forward(self, x: Tensor) -> Tensor:
        dense = torch.zeros(self.n_out * self.n_in, dtype=x.dtype).index_put((self.flat_sites(),), self.values_)
        return F.linear(x, dense.view(self.n_out, self.n_in) * self.mask, self.bias)


class SpillingModule(MaskedModule):
    """Leaves whatever the optimizer writes where there is no connection."""

    def enforce(self) -> None:
        absent = torch.ones(self.mask.numel(), dtype=torch.bool)
        absent[self.flat_sites()] = False
        with torch.no_grad():
            self.weight_parameter.view(-1)[absent] += 1e-9


class TurningLinear(_Counting):
    """Right while it is checked, wrong by a thousandth afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.calls <= _CHECKED else y * 1.001


class _CsrLayer(Layer):
    execution = "sparse_csr"
    module: ClassVar[type[CsrLinear]] = CsrLinear

    def build(self, template: nn.Module, conn: Connections, bias: Tensor | None) -> CsrLinear:
        return self.module.from_connections(conn, bias)


class Cached(_CsrLayer):
    """Returns cached outputs."""

    name = "liar-cached"
    module = CachedLinear


class Skipping(_CsrLayer):
    """Skips work."""

    name = "liar-skipping"
    module = SkippingLinear


class Greedy(_CsrLayer):
    """Uses more threads."""

    name = "liar-threads"
    module = GreedyLinear


class Coarse(_CsrLayer):
    """Changes a precision flag."""

    name = "liar-precision"
    module = CoarseLinear


class Disguised(_CsrLayer):
    """Is masked dense and says sparse."""

    name = "liar-disguised"
    module = DisguisedLinear


class Turning(_CsrLayer):
    """Is wrong after the check."""

    name = "liar-turning"
    module = TurningLinear


class Honest(_CsrLayer):
    """The same layer without a lie."""

    name = "liar-none"


class Spilling(Layer):
    """Writes outside its mask."""

    name = "liar-spilling"
    execution = "masked_dense"
    stores_dense = True

    def build(self, template: nn.Module, conn: Connections, bias: Tensor | None) -> SpillingModule:
        inner = nn.Linear(conn.shape[1], conn.shape[0], bias=bias is not None)
        flat = conn.row * conn.shape[1] + conn.col
        mask = torch.zeros(conn.shape[0] * conn.shape[1], dtype=torch.bool).index_fill_(0, flat, True).view(conn.shape)
        with torch.no_grad():
            inner.weight.zero_().view(-1)[flat] = conn.weight
            if bias is not None:
                inner.bias.copy_(bias)
        return SpillingModule(inner, mask)


@hookimpl
def sparsefleet_layers() -> list[type[Layer]]:
    """Registers the liars."""
    return [Cached, Skipping, Greedy, Coarse, Disguised, Spilling, Turning, Honest]
