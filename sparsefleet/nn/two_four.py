"""TwoFourLinear: of every four consecutive inputs two are connected, multiplied by the sparse tensor cores of a CUDA device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sparsefleet.connections import Connections
from sparsefleet.errors import UserError
from sparsefleet.nn.linear import SparseLinear
from sparsefleet.nn.module import Remap
from sparsefleet.rng import Rng

_MULTIPLE = 64
"""Of both sides of the weight, and of the rows of a batch: the least that the device's tiles take in half precision."""


class _Product(torch.autograd.Function):
    """``x Wᵀ`` with W compressed for the forward pass; the gradients are dense products, at twice the bytes of the stored values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dense: Tensor) -> Tensor:
        ctx.save_for_backward(x, dense)
        n = x.shape[0]
        padded = nn.functional.pad(x, (0, 0, 0, -n % _MULTIPLE))
        return nn.functional.linear(padded, torch.sparse.to_sparse_semi_structured(dense))[:n]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, dense = ctx.saved_tensors
        return grad @ dense if ctx.needs_input_grad[0] else None, grad.t() @ x if ctx.needs_input_grad[1] else None


class TwoFourLinear(SparseLinear):
    """A ``SparseLinear`` in the 2:4 pattern (density 0.5), with ``(n_out, n_in / 2)`` values; computes on CUDA in half precision.

    float32 values are multiplied in bfloat16, which is coarser than every other layer: hold its results to bfloat16's tolerance.

    Raises:
        UserError: sides that are no multiples of 64, connections in another pattern, or a product on a device other than CUDA.
    """

    execution = "sparse_two_four"
    topology = "n:m"
    indices = ("places",)
    places: Tensor

    def __init__(self, in_features: int, out_features: int, density: float = 0.5, *positional: Any, **options: Any) -> None:
        if in_features % _MULTIPLE or out_features % _MULTIPLE:
            raise UserError(f"layer two-four needs sides that are multiples of {_MULTIPLE}, got {out_features} x {in_features}")
        if density != 0.5:
            raise UserError(f"layer two-four has density 0.5, got {density:g}")
        super().__init__(in_features, out_features, density, *positional, **options)

    def _draw(self, density: float, rng: Rng) -> Tensor:
        groups = torch.full((self.out_features * self.in_features // 4,), 2)
        return rng.distinct_in_groups(groups, groups * 2)

    def _store(self, conn: Connections) -> None:
        self._take(conn.flat)
        self.values_ = nn.Parameter(conn.weight.detach().clone().view(self.out_features, -1))

    def _take(self, flat: Tensor) -> None:
        group, n_groups = flat // 4, self.out_features * self.in_features // 4
        if flat.numel() != 2 * n_groups or not torch.equal(
            group.view(-1, 2), torch.arange(n_groups, device=flat.device)[:, None].expand(-1, 2)
        ):
            per_group = torch.bincount(group, minlength=n_groups)
            raise UserError(
                f"layer {self.layer_name or type(self).__name__!r} holds 2 of every 4 inputs; these connections have {int(per_group.min())} to {int(per_group.max())}",
                fix="prune with pattern {n:m: {n: 2, m: 4}} to density 0.5",
            )
        self.register_buffer("places", (flat % 4).to(torch.uint8).view(self.out_features, -1))

    def _rebuild(self) -> None:
        """Nothing follows from the places."""

    def _misfit(self, stored: dict[str, Tensor]) -> str:
        shape, places = (self.out_features, self.in_features // 2), stored["places"]
        if places.shape != shape or stored["values_"].shape != shape:
            return f"places of shape {tuple(places.shape)}, expected {shape}"
        pair = places.view(-1, 2)
        n_wrong = int(((pair[:, 0] >= pair[:, 1]) | (pair[:, 1] > 3)).sum())
        return f"{n_wrong} groups do not have two different places of four" if n_wrong else ""

    def flat_sites(self) -> Tensor:
        group = torch.arange(self.places.numel(), device=self.places.device) // 2
        return group * 4 + self.places.view(-1)

    def set_topology(self, remap: Remap, values: Tensor) -> None:
        self._take(remap.flat)
        self._set_values(values.view(self.out_features, -1))

    def dense(self) -> Tensor:
        """``(n_out, n_in)`` weight with its zeros, differentiable by the values."""
        flat = self.values_.new_zeros(self.out_features * self.in_features)
        return flat.index_put((self.flat_sites(),), self.values_.view(-1)).view(self.matrix_shape)

    def multiply(self, x: Tensor) -> Tensor:
        if x.device.type != "cuda":
            raise UserError(f"layer two-four computes on CUDA, and this input lies on {x.device.type}", fix="use fixed-fan-in or csr")
        half = x.dtype if x.dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
        with torch.autocast("cuda", enabled=False):
            product: Tensor = _Product.apply(x.reshape(-1, self.in_features).to(half), self.dense().to(half))
            out = product.to(x.dtype)
        if self.bias is not None:
            out = out + self.bias.to(out.dtype)
        return out.reshape(*x.shape[:-1], self.out_features)
