"""The really smaller network: torch's own modules without the units that are gone, and what the core still knows of the network that it was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsefleet.errors import PluginError
from sparsefleet.nn.masked import MaskedModule
from sparsefleet.nn.materialise import replace_module
from sparsefleet.nn.module import Remap, SparseModule
from sparsefleet.nn.places import refuse_losses
from sparsefleet.nn.unit_pruning import Units, n_beside, units_left
from sparsefleet.plugin import Layer


class CompactUnits(SparseModule):
    """The connections of a module that has become smaller, in the network that it was; no part of the network, and final.

    Args:
        inner: the Linear or Conv2d that computes.
        shape: ``(n_out, n_in)`` that it had.
        rows: ``(k_out,)`` int64 rows that it kept.
        cols: ``(k_in,)`` int64 columns that it kept.
        execution: of the layer.
    """

    inner: Any

    def __init__(self, inner: nn.Module, shape: tuple[int, int], rows: Tensor, cols: Tensor, execution: str) -> None:
        super().__init__()
        self.inner, self.shape, self.execution = inner, shape, execution
        self.rows, self.cols = rows, cols

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.shape

    @property
    def weight_parameter(self) -> nn.Parameter:
        weight: nn.Parameter = self.inner.weight
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The bias of the units that are there."""
        own: Tensor | None = self.inner.bias
        return own

    def flat_sites(self) -> Tensor:
        return _grid(self.rows, self.cols, self.shape[1]).to(self.weight_parameter.device)

    def values(self) -> Tensor:
        return self.weight_parameter.detach().reshape(-1)

    def grad_values(self) -> Tensor | None:
        grad = self.weight_parameter.grad
        return None if grad is None else grad.reshape(-1)

    def write_values(self, values: Tensor) -> None:
        self.weight_parameter.detach().copy_(values.view_as(self.weight_parameter))

    def set_topology(self, remap: Remap, values: Tensor) -> None:
        raise PluginError(f"layer {self.layer_name!r} is compact: its connections are final")

    def remap_slot(self, slot: Tensor, remap: Remap) -> Tensor:
        raise PluginError(f"layer {self.layer_name!r} is compact: its connections are final")

    def watch_absent(self, on: bool) -> None:
        """Nothing: what is absent is not there."""

    def best_absent(self, present: Tensor, k: int) -> Tensor:
        raise PluginError(f"layer {self.layer_name!r} is compact: its connections are final")


def narrow(network: nn.Module, units: Units) -> dict[str, Tensor]:
    """Replaces, in place, every module that computes, normalises or reads a unit that is gone; works on the meta device too.

    Masked modules become the torch modules that they hold.

    Returns:
        By the key of each parameter and buffer that became smaller, the ``(k,)`` int64 flat positions that it had in the larger one.
    """
    places: dict[str, Tensor] = {}
    names = dict.fromkeys(name for group in units.groups for name in (*group.writers, *group.readers))
    for name in names:
        old: Any = network.get_submodule(name)
        rows, cols = units.rows(name), units.cols(name)
        if not isinstance(old, MaskedModule) and (rows is None or bool(rows.all())) and (cols is None or bool(cols.all())):
            continue
        weight, bias = old.weight.detach(), old.bias
        row, col = _index(rows, weight.shape[0]), _index(cols, weight[0].numel())
        new: Any = _like(old.plain() if isinstance(old, MaskedModule) else old)
        flat = _grid(row, col, weight[0].numel())
        new.weight = _part(weight, flat, (row.numel(), -1, *weight.shape[2:]))
        if bias is not None:
            new.bias = _part(bias.detach(), row, (row.numel(),))
        sides = ("out_channels", "in_channels") if isinstance(new, nn.Conv2d) else ("out_features", "in_features")
        for side, n in zip(sides, new.weight.shape, strict=False):
            setattr(new, side, n)
        replace_module(network, name, new.train(old.training))
        if flat.numel() < weight.numel():
            places[f"{name}.weight"] = flat
        if bias is not None and row.numel() < bias.numel():
            places[f"{name}.bias"] = row
    for group, kept in zip(units.groups, units.kept, strict=True):
        for name in group.norms if not bool(kept.all()) else ():
            places |= _narrow_norm(network, name, torch.nonzero(kept).flatten())
    return places


def _narrow_norm(network: nn.Module, name: str, kept: Tensor) -> dict[str, Tensor]:
    old: Any = network.get_submodule(name)
    refuse_losses(network, [name], fix="remove them before")
    n, options = kept.numel(), {"device": "meta"}
    if isinstance(old, nn.LayerNorm):
        new: Any = nn.LayerNorm(n, old.eps, old.elementwise_affine, bias=old.bias is not None, **options)
    else:
        new = type(old)(n, old.eps, old.momentum, old.affine, old.track_running_stats, **options)
    places = {}
    for key, tensor in old.state_dict(keep_vars=True).items():
        if tensor.dim():
            part, places[f"{name}.{key}"] = _part(tensor.detach(), kept, (n,)), kept
            setattr(new, key, part if isinstance(tensor, nn.Parameter) else part.detach())
        else:
            setattr(new, key, tensor)
    replace_module(network, name, new.train(old.training))
    return places


@dataclass(frozen=True)
class Compact:
    """What was done to a network that has become compact.

    Attributes:
        places: as ``narrow`` gives them.
        n_beside: parameters that went and are no connections of a prunable module.
    """

    places: dict[str, Tensor]
    n_beside: int
    parts: Mapping[str, tuple[tuple[int, int], Tensor, Tensor]]
    execution: str

    def described(self, network: nn.Module) -> dict[str, CompactUnits]:
        """What the core knows of the prunable modules of the narrowed network."""
        found = {}
        for name, (shape, rows, cols) in self.parts.items():
            found[name] = CompactUnits(network.get_submodule(name), shape, rows, cols, self.execution)
            found[name].layer_name = name
        return found


def narrowed(network: nn.Module, shapes: Mapping[str, Sequence[int]], sites: Mapping[str, Tensor], layer: Layer) -> Compact:
    """Narrows the network, in place, to the units of which connections are left.

    Args:
        shapes: weight shapes of the prunable modules.
        sites: ``(nnz,)`` int64 flat positions of each of them.

    Raises:
        PluginError: connections are missing between units that are there.
    """
    units, parts = units_left(network, sites), {}
    for name, shape in shapes.items():
        matrix = (shape[0], math.prod(shape[1:]))
        rows, cols = _index(units.rows(name), matrix[0]), _index(units.cols(name), matrix[1])
        if sites[name].numel() != rows.numel() * cols.numel():
            raise PluginError(
                f"layer {name!r} has {sites[name].numel():,} of {rows.numel() * cols.numel():,} connections between the units that are left;"
                f" layer {layer.name!r} has them all",
                fix="pattern: neuron",
            )
        parts[name] = matrix, rows, cols
    beside = n_beside(network, units)
    return Compact(narrow(network, units), beside, parts, layer.execution)


def make_compact(
    network: nn.Module, sparse: Mapping[str, SparseModule], layer: Layer, optimizer: torch.optim.Optimizer
) -> dict[str, CompactUnits]:
    """Narrows a network that is training, in place; the optimizer's parameters and slots follow.

    Args:
        sparse: its masked modules, with whole units.

    Returns:
        What the core knows of them from here on.
    """
    old = parameters_by_new_name(network, sparse)
    shapes = {
        name: tuple(module.inner.weight.shape) if isinstance(module, MaskedModule) else module.matrix_shape
        for name, module in sparse.items()
    }
    compact = narrowed(network, shapes, {name: module.flat_sites() for name, module in sparse.items()}, layer)
    for name, new in network.named_parameters():
        before = old[name]
        if new is before:
            continue
        new.requires_grad_(before.requires_grad)
        for group in optimizer.param_groups:
            group["params"] = [new if parameter is before else parameter for parameter in group["params"]]
        slots = optimizer.state.pop(before, {})
        if any(isinstance(slot, Tensor) and slot.dim() and slot.shape != before.shape for slot in slots.values()):
            continue  # factored slots (Adafactor) belong to the old shape: the optimizer starts them anew
        flat = compact.places[name].to(new.device) if name in compact.places else slice(None)
        for key, slot in slots.items():
            optimizer.state[new][key] = slot.reshape(-1)[flat].view_as(new) if isinstance(slot, Tensor) and slot.dim() else slot
    return compact.described(network)


def parameters_by_new_name(network: nn.Module, sparse: Mapping[str, SparseModule]) -> dict[str, Any]:
    """The parameters of a network by the names that they will have once its masked modules are torch's own."""
    named: dict[str, Any] = dict(network.named_parameters())
    for name, module in sparse.items():
        named |= {f"{name}.weight": module.weight_parameter, f"{name}.bias": getattr(module, "bias", None)}
    return named


def _like(module: nn.Module) -> nn.Module:
    """A copy of a Linear or Conv2d without its values."""
    own = {id(parameter): nn.Parameter(torch.empty(0, device="meta")) for parameter in module.parameters()}
    copy = deepcopy(module, own)
    copy._parameters = {key: copy._parameters[key] for key in ("weight", "bias")}  # in torch's order, which a masked module has lost
    return copy


def _part(tensor: Tensor, flat: Tensor, shape: tuple[int, ...]) -> nn.Parameter:
    if tensor.is_meta:
        return nn.Parameter(torch.empty(flat.numel(), dtype=tensor.dtype, device="meta").view(shape))
    return nn.Parameter(tensor.reshape(-1)[flat.to(tensor.device)].view(shape))


def _index(kept: Tensor | None, n: int) -> Tensor:
    return torch.arange(n) if kept is None else torch.nonzero(kept).flatten()


def _grid(rows: Tensor, cols: Tensor, n_in: int) -> Tensor:
    return (rows[:, None] * n_in + cols).flatten()
