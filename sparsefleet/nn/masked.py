"""Dense storage times a boolean mask: the reference for correctness, never faster than dense.

The mask is a buffer. The gradient by the masked weight reaches the absent sites, where the gradient by the stored weight is zero
(Evci et al., arXiv 1911.11134, grow by it). After every optimizer step absent weights are exactly zero, whatever momentum or decay did.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsefleet.connections import Connections, DenseValues
from sparsefleet.errors import InvalidMask, UserError
from sparsefleet.nn.csr import CsrLinear
from sparsefleet.nn.module import Remap, SparseModule
from sparsefleet.rng import Rng

_Self = TypeVar("_Self", bound="MaskedModule")


class _Mask(nn.Module):
    """Parametrization ``weight * mask`` that can keep the gradient of its result, summed over all uses and passes."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.watching = False
        self.grad: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        masked = weight * self.mask
        if self.watching and masked.requires_grad:
            masked.register_hook(self._keep)  # type: ignore[no-untyped-call]
        return masked

    def _keep(self, grad: Tensor) -> None:
        self.grad = grad.detach() if self.grad is None else self.grad + grad.detach()

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight * self.mask


class MaskedModule(SparseModule):
    """A Linear, Conv2d or Embedding whose weight is dense-stored and masked.

    The padding row of an Embedding is zero, whatever a method writes there; connections in it count as any others.

    Args:
        inner: the torch module, materialised; its weight is zero at absent sites.
        mask: bool, the weight's shape and device, in memory of its own.

    Raises:
        InvalidMask: it is not such a mask, or names no connection.
    """

    execution = "masked_dense"
    inner: Any

    def __init__(self, inner: nn.Module, mask: Tensor) -> None:
        super().__init__()
        weight: Any = inner.weight
        self._hold(inner, check_mask(mask, weight))

    @classmethod
    def from_connections(cls: type[_Self], conn: Connections, bias: Tensor | None, *, template: nn.Module) -> _Self:
        """``template`` (on the meta device) with the weights of ``conn``."""
        module = cls.__new__(cls)
        SparseModule.__init__(module)
        module._hold(*inner_of(conn, bias, template))
        return module

    def _hold(self, inner: Any, mask: Tensor) -> None:
        if getattr(inner, "max_norm", None) is not None or getattr(inner, "sparse", False):
            raise UserError(
                "an Embedding with max_norm or sparse=True writes into its weight or gradient past the mask", fix="leave them out"
            )
        self.kernel = inner.weight[0, 0].numel()
        self.inner = inner
        parametrize.register_parametrization(inner, "weight", _Mask(mask))
        self._flat: Tensor | None = None

    @property
    def _mask_module(self) -> _Mask:
        found: _Mask = self.inner.parametrizations.weight[0]
        return found

    @property
    def mask(self) -> Tensor:
        """The bool mask, in the weight's shape."""
        return self._mask_module.mask

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.mask.shape[0], self.mask[0].numel()

    @property
    def weight_parameter(self) -> nn.Parameter:
        stored: nn.Parameter = self.inner.parametrizations.weight.original
        return stored

    @property
    def weight(self) -> Tensor:
        """The masked weight."""
        masked: Tensor = self.inner.weight
        return masked

    @property
    def bias(self) -> Tensor | None:
        """The inner module's bias."""
        own: Tensor | None = getattr(self.inner, "bias", None)
        return own

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out

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
        self._clear_padding()

    def _clear_padding(self) -> None:
        padding = getattr(self.inner, "padding_idx", None)
        if padding is not None:
            self.weight_parameter.detach()[padding] = 0

    def as_stored(self, values: Tensor) -> Tensor:
        stored = torch.zeros_like(self.weight_parameter, dtype=values.dtype, requires_grad=False)
        stored.view(-1)[self.flat_sites()] = values
        return stored

    def set_topology(self, remap: Remap, values: Tensor) -> None:
        flat_mask, flat_weight = self.mask.view(-1), self.weight_parameter.detach().view(-1)
        flat_mask[remap.dropped] = False
        if not self.keeps_absent:
            flat_weight[remap.dropped] = 0
        flat_mask[remap.grown] = True
        flat_weight[remap.flat] = values
        self._clear_padding()
        self._flat = remap.flat

    def remap_slot(self, slot: Tensor, remap: Remap) -> Tensor:
        flat = slot.view(-1)
        flat[remap.dropped] = 0
        flat[remap.grown] = 0
        return slot

    def watch_absent(self, on: bool) -> None:
        self._mask_module.watching, self._mask_module.grad = on, None

    def best_absent(self, present: Tensor, k: int) -> Tensor:
        conn = Connections(self.layer_name, self.matrix_shape, *_split(present, self.matrix_shape[1]), weight=present.new_empty(0))
        return conn.best_absent(k, self.dense_grad())

    def best_absent_per_row(self, present: Tensor, counts: Tensor) -> Tensor:
        conn = Connections(self.layer_name, self.matrix_shape, *_split(present, self.matrix_shape[1]), weight=present.new_empty(0))
        return conn.best_absent_per_row(counts, self.dense_grad())

    def dense_grad(self) -> Tensor:
        """``(n_out, n_in)`` gradient by the masked weight, summed over the backward passes since watching began."""
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

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.get(f"{prefix}inner.parametrizations.weight.0.mask")
        if stored is not None and (stored.dtype != torch.bool or stored.shape != self.mask.shape):  # copied into bool, a NaN would be True
            problem = f"a mask of {stored.dtype} {tuple(stored.shape)}, expected bool {tuple(self.mask.shape)}"
            args[-1].append(f"{prefix.rstrip('.') or type(self).__name__}: {problem}")  # the last argument collects messages
            state_dict.update(
                {name: own for name, own in self.state_dict(prefix=prefix).items() if name in state_dict}
            )  # nothing is taken over
            stored = None
        held = bool(self.method_state) or self._mask_module.grad is not None
        if held and stored is not None and stored.shape == self.mask.shape and not torch.equal(stored.to(self.mask), self.mask):
            self.method_state, self._mask_module.grad = {}, None  # they belong to the connections that were
        self._flat = None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._flat = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def plain(self) -> nn.Module:
        """The torch module without its mask: the same Parameters under their first names, the stored weight among them."""
        kind: Any = parametrize.type_before_parametrizations(self.inner)
        plain: nn.Module = kind.__new__(kind)  # removing the parametrization would take it off the class, and so off this module too
        parameters = {**self.inner._parameters, "weight": self.weight_parameter}
        plain.__dict__.update({**self.inner.__dict__, "_modules": {}, "_parameters": parameters})
        return plain

    def __reduce__(self) -> Any:
        """torch pickles no parametrized module, so the parts go and are put together again; a Parameter stays the one that others hold."""
        rest = {key: value for key, value in self.__dict__.items() if key not in ("_modules", "_flat")}
        return _put_together, (type(self), self.plain(), self.mask.clone(), self.weight_parameter, rest)

    def extra_repr(self) -> str:
        return f"nnz={self.nnz}, density={self.nnz / self.mask.numel():.4g}"


class MaskedLinear(MaskedModule):
    """A drop-in for ``nn.Linear`` with a dense-stored, masked weight; ``weight`` is the masked one.

    Args:
        in_features, out_features, density, bias, seed, device, dtype, connections: as for ``SparseLinear``.
    """

    def __init__(self, in_features: int, out_features: int, density: float = 0.1, bias: bool = True, **options: Any) -> None:
        drawn = CsrLinear(in_features, out_features, density, bias, **options)
        with torch.device("meta"):
            template = nn.Linear(in_features, out_features, bias=bias)
        super().__init__(*inner_of(drawn.connections(), drawn.bias, template))
        self.init_key = drawn.init_key

    @property
    def in_features(self) -> int:
        """Input units."""
        return self.matrix_shape[1]

    @property
    def out_features(self) -> int:
        """Output units."""
        return self.matrix_shape[0]


def check_mask(mask: Tensor, weight: Tensor) -> Tensor:
    """``mask``, which says of every value of ``weight`` whether it is a connection.

    Raises:
        InvalidMask: another shape, dtype or device, values that are neither 0 nor 1, not contiguous, in the weight's memory, or all zero.
    """
    problem = ""
    if mask.shape != weight.shape:
        problem = f"its shape is {tuple(mask.shape)}, the weight's {tuple(weight.shape)}"
    elif mask.device != weight.device:
        problem = f"it lies on {mask.device}, the weight on {weight.device}"
    elif mask.dtype != torch.bool:
        n_wrong = int(((mask != 0) & (mask != 1)).sum())
        problem = f"it is {mask.dtype}, not bool{f', and {n_wrong} of {mask.numel()} values are neither 0 nor 1' if n_wrong else ''}"
    elif mask.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr():
        problem = "it lies in the weight's memory"
    elif not mask.is_contiguous():
        problem = f"its strides are {mask.stride()}: it is not contiguous"
    elif not bool(mask.any()):
        problem = "it names no connection"
    if problem:
        raise InvalidMask(f"a mask of a weight of {tuple(weight.shape)} is refused", cause=problem)
    return mask


def inner_of(conn: Connections, bias: Tensor | None, template: nn.Module) -> tuple[nn.Module, Tensor]:
    """``template`` with the weights of ``conn`` and zeros elsewhere, and the mask."""
    inner: Any = template.to_empty(device=conn.weight.device).to(conn.weight.dtype)
    mask = torch.zeros(inner.weight.shape, dtype=torch.bool, device=conn.weight.device)
    mask.view(-1)[conn.flat] = True
    with torch.no_grad():
        inner.weight.zero_()
        inner.weight.view(-1)[conn.flat] = conn.weight
        if bias is not None:
            inner.bias.copy_(bias)
    return inner, mask


def _put_together(kind: type[MaskedModule], plain: nn.Module, mask: Tensor, stored: nn.Parameter, rest: dict[str, Any]) -> MaskedModule:
    module = kind.__new__(kind)
    SparseModule.__init__(module)
    module.__dict__.update(rest)
    plain.register_parameter("weight", nn.Parameter(torch.zeros_like(stored)))  # masking the stored one would clear its absent values
    module._hold(plain, mask)
    module.inner.parametrizations.weight.original = stored
    return module


def _split(flat: Tensor, n_in: int) -> tuple[Tensor, Tensor]:
    return flat // n_in, flat % n_in
