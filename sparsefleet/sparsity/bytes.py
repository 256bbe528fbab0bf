"""Bytes of a network: what it and its optimizer hold between two steps, by role, and what its trained weights take in a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

ROLES = ("values", "indices", "masks", "other", "buffers", "optimizer")
_DENSE_PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SPARSE_LAYOUTS = (torch.sparse_csr, torch.sparse_bsr)


def resident_bytes(network: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, int]:
    """Bytes of every unique storage, by role; the roles are ``ROLES`` and sum to all that is resident.

    ``values``: weights of the modules that are or may become sparse, with copies that a module keeps of them. ``indices``: integer
    tensors of those modules. ``masks``: boolean tensors, and values of masked-out sites count as values, since they are stored.
    ``other``: the remaining parameters (biases, norms). ``buffers``: the remaining tensors of modules. ``optimizer``: its state.
    Gradients and activations come and go within a step, so they belong to the peak and not here. Tensors that a module hides in plain
    attributes, containers or dataclasses are found too.
    """
    total = dict.fromkeys(ROLES, 0)
    seen: set[tuple[str, int]] = set()
    for role, tensor in [*_of_network(network), *_of_optimizer(optimizer)]:
        storage = tensor.untyped_storage()
        key = (str(tensor.device), storage._cdata)
        if key not in seen:
            seen.add(key)
            total[role] += storage.nbytes()
    return total


def stored_bytes(network: nn.Module) -> tuple[int, int]:
    """Bytes of the trained network in a file, and of the same network dense.

    Biases, norms and buffers count at their own width in both. A sparse weight is its values at the module's ``value_bits``, its scales, and
    where the values are (``index_bits``), whatever the storage holds in memory while it trains.
    """
    sparse: list[Any] = [module for module in network.modules() if callable(getattr(module, "connections", None))]
    own = {id(tensor) for module in sparse for tensor in (module.weight_parameter, *module.buffers())}
    rest = sum(t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers()) if id(t) not in own)
    stored = dense = rest
    for module in sparse:
        n_out, n_in = module.matrix_shape
        stored += -(-(module.nnz * module.value_bits + index_bits((n_out, n_in), module.nnz)) // 8) + module.scale_bytes
        dense += n_out * n_in * module.weight_parameter.element_size()
    return stored, dense


def index_bits(shape: tuple[int, int], nnz: int) -> int:
    """Bits that say where ``nnz`` of the sites of a matrix are; nothing where all are there.

    The cheaper of one bit for each site, and CSR: a column for each connection and where each row begins, in as few bits as they need.
    """
    n_out, n_in = shape
    if nnz == n_out * n_in:
        return 0
    return min(n_out * n_in, nnz * (n_in - 1).bit_length() + (n_out + 1) * nnz.bit_length())


def _of_network(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters of all modules first, so that a storage shared with a buffer keeps the parameter's role."""
    owners = {name: module for name, module in network.named_modules() if _may_be_sparse(module)}
    rest: list[tuple[str, Tensor]] = []
    for name, module in network.named_modules(remove_duplicate=True):
        in_sparse = any(name == owner or name.startswith(f"{owner}." if owner else "") for owner in owners)
        for key, parameter in module.named_parameters(recurse=False):
            yield _parameter_role(f"{name}.{key}", in_sparse), parameter
        for value in (*module._buffers.values(), *(v for k, v in module.__dict__.items() if not _is_plumbing(k))):
            rest.extend((_buffer_role(tensor, in_sparse), tensor) for tensor in _tensors(value, set()))
    yield from rest


def _is_plumbing(attribute: str) -> bool:
    return attribute in ("_parameters", "_buffers", "_modules") or attribute.endswith("_hooks")


def _may_be_sparse(module: nn.Module) -> bool:
    return isinstance(module, _DENSE_PRUNABLE) or callable(getattr(module, "connections", None))


def _parameter_role(name: str, in_sparse: bool) -> str:
    return "values" if in_sparse and not name.endswith("bias") else "other"


def _buffer_role(tensor: Tensor, in_sparse: bool) -> str:
    if tensor.dtype == torch.bool:
        return "masks"
    if not in_sparse:
        return "buffers"
    return "values" if tensor.is_floating_point() else "indices"


def _of_optimizer(optimizer: torch.optim.Optimizer | None) -> Iterator[tuple[str, Tensor]]:
    if optimizer is not None:
        for state in optimizer.state.values():
            yield from (("optimizer", tensor) for tensor in _tensors(state, set()))


def _tensors(value: Any, visited: set[int]) -> Iterator[Tensor]:
    """Strided tensors reachable from ``value`` through containers and dataclasses; modules and functions are not entered."""
    if isinstance(value, Tensor):
        yield from _strided(value)
        return
    if id(value) in visited or isinstance(value, (str, bytes, int, float, type, nn.Module)):
        return
    visited.add(id(value))
    if isinstance(value, Mapping):
        inner = list(value.values())
    elif isinstance(value, (list, tuple, set, frozenset)):
        inner = list(value)
    elif dataclasses.is_dataclass(value):
        inner = [getattr(value, field.name) for field in dataclasses.fields(value)]
    else:
        inner = []
    for part in inner:
        yield from _tensors(part, visited)


def _strided(tensor: Tensor) -> Iterator[Tensor]:
    if tensor.layout == torch.strided:
        yield tensor
    elif tensor.layout == torch.sparse_coo:
        yield from (tensor._indices(), tensor._values())
    elif tensor.layout in _SPARSE_LAYOUTS:
        yield from (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    else:
        yield from (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
