"""SparseLinear: what every sparse drop-in for ``torch.nn.Linear`` has in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from sparsefleet.connections import Connections, check_sites
from sparsefleet.errors import InvalidMask, UserError
from sparsefleet.nn.absent import best_absent, best_absent_per_row
from sparsefleet.nn.module import Remap, SparseModule
from sparsefleet.ops.operands import refuse_misfits
from sparsefleet.rng import Rng, key_of, uniform_at

_Self = TypeVar("_Self", bound="SparseLinear")
_CHUNK = 1 << 20
_MOST_UNITS = 2**31 - 1
_INTEGERS = (torch.int32, torch.int64, torch.int16, torch.uint8, torch.int8)


class SparseLinear(SparseModule):
    """``y = x Wᵀ + b`` with a weight of few connections; its values are one ordinary Parameter that any torch optimizer trains.

    Inputs have any leading dimensions, also none. Under autocast the result has autocast's dtype, as that of ``nn.Linear``. Values and bias
    are drawn uniformly in ±1/sqrt(in_features), as ``nn.Linear`` draws them.

    Args:
        in_features: input units.
        out_features: output units.
        density: kept share of the ``out_features * in_features`` sites.
        bias: whether there is one; or its ``(out_features,)`` values.
        seed: decides connections and values; None draws it from torch's generator, which ``torch.manual_seed`` sets.
        connections: ``(2, nnz)`` int64 (output unit, input unit) in any order, in place of a random draw; or ``Connections`` with weights.

    Raises:
        UserError: a density outside (0, 1], no units, or connections that the layer cannot hold.
        InvalidMask: connections out of range or doubled, with their counts.
    """

    keeps_feature_major: ClassVar[bool] = False
    """Outputs of a batch have strides (1, batch), and inputs of such strides are used as they are."""
    indices: ClassVar[tuple[str, ...]] = ()
    """The index buffers that a state dict holds; everything else of the index follows from them."""
    values_: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        density: float = 0.1,
        bias: bool | Tensor | None = True,
        *,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        connections: Tensor | Connections | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(in_features, out_features, connections)
        self.in_features, self.out_features = in_features, out_features
        if seed is None:  # what is given whole draws nothing, so that a storage changes no later draw
            seed = 0 if isinstance(connections, Connections) and bias is not True else int(torch.randint(2**31 - 1, ()))
        asked, dtype = dtype, dtype or torch.get_default_dtype()
        self.init_key = key_of(seed, "weight", "")
        if isinstance(connections, Connections):
            conn = _checked(connections)
        else:
            conn = self._connected(connections, density, seed, torch.device(device or torch.get_default_device()))
            conn.weight = self.initial_draw(conn.flat).div_(math.sqrt(in_features)).to(dtype)
        if isinstance(bias, bool):
            bias = self._drawn_bias(seed, conn.weight) if bias else None
        self.bias: nn.Parameter | None
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))
        self._watching = False
        self._seen: list[tuple[Tensor, Tensor, int]] = []
        self._store(conn)
        if isinstance(connections, Connections) and (device is not None or asked is not None):
            self.to(device=device, dtype=asked)

    @classmethod
    def from_connections(cls: type[_Self], conn: Connections, bias: Tensor | None, **options: Any) -> _Self:
        """The layer that holds ``conn`` with its weights, and ``(n_out,)`` ``bias`` or none."""
        return cls(conn.n_in, conn.n_out, bias=bias, connections=conn, **options)

    def _connected(self, sites: Tensor | None, density: float, seed: int, device: torch.device) -> Connections:
        if not 0 < density <= 1:
            raise UserError(f"density must be in (0, 1], got {density:g}")
        shape = self.out_features, self.in_features
        if sites is None:
            flat = self._draw(density, Rng(seed, "connectivity", "")).to(device)
        else:
            flat = check_sites(sites.to(device), shape, layer=type(self).__name__)
        return Connections("", shape, flat // shape[1], flat % shape[1], torch.empty(0, device=device))

    def _drawn_bias(self, seed: int, like: Tensor) -> Tensor:
        uniform = uniform_at(key_of(seed, "bias", ""), torch.arange(self.out_features, device=like.device))
        return uniform.mul_(2).sub_(1).div_(math.sqrt(self.in_features)).to(like.dtype)

    def _draw(self, density: float, rng: Rng) -> Tensor:
        """``(nnz,)`` ascending flat sites of a random draw."""
        n_sites = self.out_features * self.in_features
        return rng.distinct(max(1, round(density * n_sites)), n_sites)

    @abstractmethod
    def _store(self, conn: Connections) -> None:
        """Takes over the connections and weights of a new layer."""

    @abstractmethod
    def multiply(self, x: Tensor) -> Tensor:
        """``(..., n_out)``: ``x Wᵀ + b`` for ``(..., n_in)``."""

    @abstractmethod
    def _rebuild(self) -> None:
        """Makes what follows from ``indices``, after they were loaded."""

    @abstractmethod
    def _misfit(self, stored: dict[str, Tensor]) -> str:
        """Why ``indices`` and ``values_`` of a state dict do not describe this layer, or nothing; kernels trust what is stored."""

    @property
    def weight_parameter(self) -> nn.Parameter:
        return self.values_

    @property
    def nnz(self) -> int:
        return self.values_.numel()

    @property
    def n_out(self) -> int:
        """Output units."""
        return self.out_features

    @property
    def n_in(self) -> int:
        """Input units."""
        return self.in_features

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    @property
    def weight(self) -> Tensor:
        """The weight as a coalesced sparse COO tensor ``(n_out, n_in)`` that shares the values' memory; without gradient."""
        flat = self.flat_sites()
        where = torch.stack([flat // self.in_features, flat % self.in_features])
        return torch.sparse_coo_tensor(where, self.values(), self.matrix_shape, is_coalesced=True, check_invariants=False)

    def forward(self, x: Tensor) -> Tensor:
        refuse_misfits(x, self.in_features, type(self).__name__)
        device = x.device.type
        if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(device))
        out = self.multiply(x)
        if self._watching and out.requires_grad:
            seen = x.detach().reshape(-1, self.in_features)
            version = _version(seen)
            out.register_hook(lambda grad: self._keep(seen, grad, version))  # type: ignore[no-untyped-call]
        return out

    def _keep(self, x: Tensor, grad: Tensor, version: int) -> None:
        """All uses in all passes count together, as in the gradient that an optimizer gets; x is an alias, so its version goes along."""
        self._seen.append((x, grad.detach().reshape(-1, self.out_features), version))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": []}  # a copy has no gradients either

    def values(self) -> Tensor:
        return self.values_.detach().view(-1)

    def grad_values(self) -> Tensor | None:
        grad = self.values_.grad
        return None if grad is None else grad.reshape(-1)

    def write_values(self, values: Tensor) -> None:
        if values.data_ptr() != self.values_.data_ptr():
            self.values_.detach().view(-1).copy_(values)

    def _set_values(self, stored: Tensor) -> None:
        """Into the same memory where the shape stays; the Parameter object stays in any case."""
        if stored.shape == self.values_.shape:
            self.values_.detach().copy_(stored)
        else:
            self.values_.data = stored.clone()

    def remap_slot(self, slot: Tensor, remap: Remap) -> Tensor:
        moved = remap.gather(slot.view(-1))
        return slot.view(-1).copy_(moved).view_as(slot) if moved.numel() == slot.numel() else moved

    def watch_absent(self, on: bool) -> None:
        self._watching = on
        self._seen = []

    def _watched(self) -> tuple[Tensor, Tensor]:
        """``(batch, n_in)`` inputs and ``(batch, n_out)`` gradients of all watched passes, one after another."""
        if not self._seen:
            raise RuntimeError(f"layer {self.layer_name!r}: no watched backward pass has run")
        if any(_version(x) > version for x, _, version in self._seen):
            raise UserError(
                f"layer {self.layer_name!r}: its input was changed in place before the update that grows by it",
                fix="give the layer a copy of that input: layer(x.clone())",
            )
        inputs, grads, _ = zip(*self._seen, strict=True)
        x, grad = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in (inputs, grads))
        kind = grad.dtype if grad.dtype in (torch.float32, torch.float64) else torch.float32
        return x.to(kind), grad.to(kind)

    def best_absent(self, present: Tensor, k: int) -> Tensor:
        return best_absent(*self._watched(), present, k)

    def best_absent_per_row(self, present: Tensor, counts: Tensor) -> Tensor:
        return best_absent_per_row(*self._watched(), present, counts)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = {name: state_dict[f"{prefix}{name}"] for name in (*self.indices, "values_") if f"{prefix}{name}" in state_dict}
        whole = len(stored) == len(self.indices) + 1
        problem = (
            (_not_whole(stored, self.indices) or self._misfit(stored))
            if whole
            else f"{', '.join(stored)} without the rest of the layer"
            if stored
            else ""
        )
        if whole and not problem:
            self._forget_unless_at(stored)
            for name in self.indices:
                setattr(self, name, torch.empty_like(stored[name], dtype=getattr(self, name).dtype, device=self.values_.device))
            if stored["values_"].shape != self.values_.shape:
                self.values_.data = self.values_.new_empty(stored["values_"].shape)
                self.values_.grad = None
        if problem:  # nothing is taken over: kernels trust what is stored
            args[-1].append(f"{prefix.rstrip('.') or type(self).__name__}: {problem}")  # the last argument collects messages
            return
        super()._load_from_state_dict(state_dict, prefix, *args)
        if whole:
            self._rebuild()

    def _forget_unless_at(self, stored: dict[str, Tensor]) -> None:
        """Other connections than these do not keep what belongs to them: the method's state and the watched passes."""
        own = [(getattr(self, name), stored[name]) for name in self.indices] if self.method_state or self._seen else []
        if any(index.shape != new.shape or not torch.equal(index, new.to(index)) for index, new in own):
            self.method_state, self._seen = {}, []

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = [getattr(self, name) for name in self.indices]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = [(old, new) for old, new in zip(before, (getattr(self, name) for name in self.indices), strict=True) if new is not old]
        moved = [(old, new) for old, new in moved if not new.is_meta]
        if any(
            old.is_meta or not torch.equal(old.to(new.device), new) for old, new in moved
        ):  # of ``to_empty``: none until they are loaded
            for index in self.buffers(recurse=False):
                index.zero_()
        elif any(old.device.type != new.device.type for old, new in moved):  # what follows from the index is the device's
            self._rebuild()
        return self

    def extra_repr(self) -> str:
        kept = self.nnz / max(1, self.in_features * self.out_features)
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, nnz={self.nnz}, density={kept:.4g}"


def _check_sizes(in_features: int, out_features: int, connections: Tensor | Connections | None) -> None:
    for name, n in (("in_features", in_features), ("out_features", out_features)):
        if not isinstance(n, int) or not 1 <= n <= _MOST_UNITS:
            raise UserError(f"{name} must be a whole number from 1 to {_MOST_UNITS}, got {n!r}")
    if isinstance(connections, Connections) and connections.shape != (out_features, in_features):
        raise UserError(f"connections of {connections.n_out} x {connections.n_in} units for a layer of {out_features} x {in_features}")


def _not_whole(stored: Mapping[str, Tensor], indices: Iterable[str]) -> str:
    """Which index is not of integers: copied into one, half a unit would be another one, and NaN any."""
    kinds = {name: stored[name].dtype for name in indices}
    return ", ".join(f"{name} of {kind}, expected integers" for name, kind in kinds.items() if kind not in _INTEGERS)


def _version(x: Tensor) -> int:
    """How often ``x`` was changed in place; tensors of inference mode do not count."""
    return 0 if x.is_inference() else x._version


def _checked(conn: Connections) -> Connections:
    """``conn``, whose sites the kernels will trust.

    Raises:
        InvalidMask: sites out of range, given twice, or not in ascending order, with their number.
    """
    n_outside = n_disordered = 0
    for start in range(0, conn.nnz, _CHUNK):
        row, col = conn.row[start : start + _CHUNK + 1], conn.col[start : start + _CHUNK + 1]
        outside = (row < 0) | (row >= conn.n_out) | (col < 0) | (col >= conn.n_in)
        n_outside += int(outside[:_CHUNK].sum())
        n_disordered += int((torch.diff(row * conn.n_in + col) <= 0).sum())
    if n_outside:
        raise InvalidMask(f"layer {conn.layer!r}: {n_outside} of {conn.nnz} connections lie outside {conn.n_out} x {conn.n_in}")
    if n_disordered:
        raise InvalidMask(f"layer {conn.layer!r}: {n_disordered} of {conn.nnz} connections do not ascend by (row, column)")
    return conn
