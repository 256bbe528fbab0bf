"""A masked weight that is rounded to few bits in the forward pass: fake quantisation, so that training sees what would be stored."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsefleet.connections import Connections
from sparsefleet.nn.csr import CsrLinear
from sparsefleet.nn.masked import MaskedModule, inner_of
from sparsefleet.nn.module import SparseModule

_Self = TypeVar("_Self", bound="QuantisedModule")


class _StraightThrough(torch.autograd.Function):
    """Rounds; the gradient is that of the identity (arXiv 1308.3432, section 4), also at every weight: none lies outside the range."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, levels: int) -> Tensor:
        largest = weight.abs().amax(tuple(range(1, weight.dim())), keepdim=True)
        scale = (largest / levels).clamp_(min=torch.finfo(weight.dtype).tiny)  # a row of zeros has none, and stays 0
        return (weight / scale).round_().clamp_(-levels, levels).mul_(scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is needed."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, levels: None) -> Tensor:
        return tangent.view_as(tangent)


def rounded(weight: Tensor, bits: int) -> Tensor:
    """``weight`` at the nearest of ``2**bits - 1`` evenly spaced levels around 0, of every output channel (arXiv 1712.05877, section 3, symmetric).

    The largest magnitude of a channel is its last level, so nothing is clipped, and 0 stays 0. A straight-through estimator is its gradient.
    """
    quantised: Tensor = _StraightThrough.apply(weight, 2 ** (bits - 1) - 1)
    return quantised


class _Round(nn.Module):
    """Parametrization ``rounded``."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        return rounded(weight, self.bits)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


class QuantisedModule(MaskedModule):
    """A ``MaskedModule`` that computes with its masked weight at ``bits`` bits; what is trained, pruned and grown is the weight before.

    Attributes:
        bits: 2 to 8, the sign's among them.
    """

    bits: int

    @classmethod
    def from_connections(cls: type[_Self], conn: Connections, bias: Tensor | None, *, template: nn.Module, bits: int = 8) -> _Self:
        """``template`` (on the meta device) with the weights of ``conn``."""
        module = cls.__new__(cls)
        SparseModule.__init__(module)
        module.bits = bits
        module._hold(*inner_of(conn, bias, template))
        return module

    def _hold(self, inner: Any, mask: Tensor) -> None:
        super()._hold(inner, mask)
        parametrize.register_parametrization(inner, "weight", _Round(self.bits))

    @property
    def value_bits(self) -> int:
        return self.bits

    @property
    def scale_bytes(self) -> int:
        return self.matrix_shape[0] * self.weight_parameter.element_size()

    def multiplied(self) -> Tensor:
        return self.weight.detach().reshape(-1)[self.flat_sites()]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}"


class QuantisedLinear(QuantisedModule):
    """A drop-in for ``nn.Linear`` with a masked weight at few bits.

    Args:
        bits: 2 to 8.
        in_features, out_features, density, bias, seed, device, dtype, connections: as for ``SparseLinear``.
    """

    def __init__(
        self, in_features: int, out_features: int, density: float = 0.1, bias: bool = True, *, bits: int = 8, **options: Any
    ) -> None:
        drawn = CsrLinear(in_features, out_features, density, bias, **options)
        with torch.device("meta"):
            template = nn.Linear(in_features, out_features, bias=bias)
        SparseModule.__init__(self)
        self.bits = bits
        self._hold(*inner_of(drawn.connections(), drawn.bias, template))
        self.init_key = drawn.init_key

    @property
    def in_features(self) -> int:
        """Input units."""
        return self.matrix_shape[1]

    @property
    def out_features(self) -> int:
        """Output units."""
        return self.matrix_shape[0]
