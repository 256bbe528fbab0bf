"""Dense storage times a boolean mask: the reference for correctness, never faster than dense.

The mask is a buffer. The gradient by the masked weight reaches the absent sites, where the gradient by the stored weight is zero
(Evci et al., arXiv 1911.11134, grow by it). After every optimizer step absent weights are exactly zero, whatever momentum or decay did.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsefleet import Connections, DenseValues, Layer, Rng, hookimpl
from sparsefleet.nn import Remap, SparseModule


class _Mask(nn.Module):
    """Parametrization ``weight * mask`` that can keep the gradient of its result."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.watching = False
        self.grad: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        masked = weight * self.mask
        if self.watching and masked.requires_grad:
            masked.register_hook(self._keep)
        return masked

    def _keep(self, grad: Tensor) -> None:
        self.grad = grad.detach()

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight * self.mask


class MaskedModule(SparseModule):
    """A Linear or Conv2d whose weight is dense-stored and masked.

    Args:
        inner: the torch module, materialised; its weight is zero at absent sites.
        mask: bool, the weight's shape.
    """

    execution = "masked_dense"

    def __init__(self, inner: nn.Module, mask: Tensor) -> None:
        super().__init__()
        self.kernel = inner.weight[0, 0].numel()
        self.inner = inner
        parametrize.register_parametrization(inner, "weight", _Mask(mask))
        self._flat: Tensor | None = None

    @property
    def _mask_module(self) -> _Mask:
        return self.inner.parametrizations.weight[0]

    @property
    def mask(self) -> Tensor:
        """The bool mask, in the weight's shape."""
        return self._mask_module.mask

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.mask.shape[0], self.mask[0].numel()

    @property
    def weight_parameter(self) -> nn.Parameter:
        return self.inner.parametrizations.weight.original

    @property
    def weight(self) -> Tensor:
        """The masked weight."""
        return self.inner.weight

    @property
    def bias(self) -> Tensor | None:
        """The inner module's bias."""
        return self.inner.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)

    def flat_sites(self) -> Tensor:
        if self._flat is None:
            self._flat = torch.nonzero(self.mask.reshape(-1)).flatten()
        return self._flat

    def values(self) -> Tensor:
        return self.weight_parameter.detach().reshape(-1)[self.flat_sites()]

    def grad_values(self) -> Tensor | None:
        grad = self.weight_parameter.grad
        return None if grad is None else grad.reshape(-1)[self.flat_sites()]

    def write_values(self, values: Tensor) -> None:
        self.weight_parameter.detach().view(-1)[self.flat_sites()] = values

    def set_topology(self, remap: Remap, values: Tensor) -> None:
        flat_mask, flat_weight = self.mask.view(-1), self.weight_parameter.detach().view(-1)
        flat_mask[remap.dropped] = False
        if not self.keeps_absent:
            flat_weight[remap.dropped] = 0
        flat_mask[remap.grown] = True
        flat_weight[remap.flat] = values
        self._flat = remap.flat

    def remap_slot(self, slot: Tensor, remap: Remap) -> Tensor:
        flat = slot.view(-1)
        flat[remap.dropped] = 0
        flat[remap.grown] = 0
        return slot

    def watch_absent(self, on: bool) -> None:
        self._mask_module.watching = on
        if not on:
            self._mask_module.grad = None

    def best_absent(self, present: Tensor, k: int) -> Tensor:
        conn = Connections(self.layer_name, self.matrix_shape, *_split(present, self.matrix_shape[1]), weight=present.new_empty(0))
        return conn.best_absent(k, self.dense_grad())

    def dense_grad(self) -> Tensor:
        """``(n_out, n_in)`` gradient by the masked weight in the last watched backward pass."""
        grad = self._mask_module.grad
        if grad is None:
            raise RuntimeError(f"layer {self.layer_name!r}: no watched backward pass has run")
        return grad.reshape(self.matrix_shape)

    def enforce(self) -> None:
        if not self.keeps_absent:
            with torch.no_grad():
                self.weight_parameter.mul_(self.mask)

    def connections(self, rng: Rng | None = None) -> Connections:
        conn = super().connections(rng)
        grad = self._mask_module.grad
        conn.dense = DenseValues(
            weight=self.weight_parameter.detach().view(self.matrix_shape),
            grad=None if grad is None else grad.reshape(self.matrix_shape),
            state=self.dense_state,
        )
        return conn

    def load_state_dict(self, *args: object, **kwargs: object) -> object:
        self._flat = None
        return super().load_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        return f"nnz={self.nnz}, density={self.nnz / self.mask.numel():.4g}"


def _split(flat: Tensor, n_in: int) -> tuple[Tensor, Tensor]:
    return flat // n_in, flat % n_in


class Masked(Layer):
    """Dense weight times a boolean mask; the reference for correctness."""

    name = "masked"
    execution = "masked_dense"
    kinds = ("Linear", "Conv2d")
    stores_dense = True

    def build(self, template: nn.Module, conn: Connections, bias: Tensor | None) -> MaskedModule:
        """A masked module with the weights of ``conn``."""
        inner = template.to_empty(device=conn.weight.device).to(conn.weight.dtype)
        mask = torch.zeros(inner.weight.shape, dtype=torch.bool, device=conn.weight.device)
        mask.view(-1)[conn.flat] = True
        with torch.no_grad():
            inner.weight.zero_()
            inner.weight.view(-1)[conn.flat] = conn.weight
            if bias is not None:
                inner.bias.copy_(bias)
        return MaskedModule(inner, mask)


@hookimpl
def sparsefleet_layers() -> list[type[Layer]]:
    """Registers the masked layer."""
    return [Masked]
