"""Puts modules whose weights are Linear modules in the place of torch's compound ones, so that gates and projections can be sparse."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from sparsefleet.nn.attention import MultiheadAttention
from sparsefleet.nn.places import leave_fast_paths, refuse_losses
from sparsefleet.nn.recurrent import GRU, LSTM

Compound = LSTM | GRU | MultiheadAttention
_KINDS: dict[type[nn.Module], type[Compound]] = {nn.LSTM: LSTM, nn.GRU: GRU, nn.MultiheadAttention: MultiheadAttention}


def exposed(network: nn.Module) -> nn.Module:
    """``network`` with its compound modules replaced, in place, by ours with the same weights; the new one where it is one itself.

    Subclasses of torch's modules stay: they may compute something else.
    """
    if type(network) in _KINDS:
        return _ours_for(network)
    _put_in_place(network, {old: _ours_for(old) for old in _compounds(network, ()).values()})
    return network


def packed(network: nn.Module) -> nn.Module:
    """``network`` with torch's own module in the place of every LSTM and GRU of ours whose gates are all Linear, in place.

    Ours puts the gates' weights together at every pass; a dense network that is timed need not pay for that. Attention of ours does not.
    """
    if isinstance(network, (LSTM, GRU)):
        return network.to_torch() if network.is_plain() else network
    found = [module for module in network.modules() if isinstance(module, (LSTM, GRU)) and module.is_plain()]
    _put_in_place(network, {ours: ours.to_torch() for ours in found})
    return network


class Exposure:
    """The same for a model that an optimizer trains already; a context that takes everything back where an error leaves it.

    Args:
        skip: names of modules that stay, with what is in them.

    Attributes:
        ours: what will stand in the place of the modules of these names.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, skip: Collection[str]) -> None:
        self._model, self._optimizer = model, optimizer
        self._old = _compounds(model, skip)
        self.ours = {name: _ours_for(old) for name, old in self._old.items()}

    def __enter__(self) -> None:
        refuse_losses(self._model, self._old, fix="register them once the Sparsifier stands, or name the module in keep_dense")
        self._params = [list(group["params"]) for group in self._optimizer.param_groups]
        self._slots = dict(self._optimizer.state)
        _put_in_place(self._model, {old: self.ours[name] for name, old in self._old.items()})
        for name, old in self._old.items():
            _split(self._optimizer, old, self.ours[name])

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            return
        _put_in_place(self._model, {self.ours[name]: old for name, old in self._old.items()})
        for group, params in zip(self._optimizer.param_groups, self._params, strict=True):
            group["params"] = params
        self._optimizer.state.clear()
        self._optimizer.state.update(self._slots)


def _compounds(network: nn.Module, skip: Collection[str]) -> dict[str, nn.Module]:
    kept = {id(part) for name, module in network.named_modules(remove_duplicate=False) if name in skip for part in module.modules()}
    return {name: module for name, module in network.named_modules() if type(module) in _KINDS and id(module) not in kept}


def _ours_for(module: nn.Module) -> Compound:
    kind: Any = _KINDS[type(module)]
    ours: Compound = kind.from_torch(module)
    return ours


def _put_in_place(network: nn.Module, stands_for: Mapping[nn.Module, nn.Module]) -> None:
    """Replaces modules wherever they stand; torch's transformer layers then call theirs."""
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in stands_for:
                setattr(parent, name, stands_for[child])
    leave_fast_paths(network)


def _split(optimizer: torch.optim.Optimizer, old: nn.Module, new: Compound) -> None:
    """Gives the optimizer the parameters of ``new`` in the places of torch's, with the rows of their slots."""
    parts: dict[nn.Parameter, list[tuple[nn.Parameter, slice]]] = {}
    for parameter, name, rows in new.sources():
        parts.setdefault(old.get_parameter(name), []).append((parameter, rows))
    for group in optimizer.param_groups:
        group["params"] = [each for parameter in group["params"] for each, _ in parts.get(parameter, [(parameter, slice(None))])]
    for parameter, own in parts.items():
        slots = optimizer.state.pop(parameter, {})
        if any(isinstance(slot, Tensor) and slot.dim() and slot.shape != parameter.shape for slot in slots.values()):
            continue  # factored slots (Adafactor) belong to the old shape: the optimizer starts them anew
        for each, rows in own if slots else ():
            optimizer.state[each] = {key: _rows_of(slot, rows) for key, slot in slots.items()}


def _rows_of(slot: Any, rows: slice) -> Any:
    if not isinstance(slot, Tensor):
        return slot
    return (slot[rows] if slot.dim() else slot).clone()
