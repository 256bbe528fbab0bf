"""Sizes of a network, counted from its connections by us, and optimizer slots that follow a conversion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sparsefleet.nn.module import SparseModule
from sparsefleet.sparsity.bytes import resident_bytes, stored_bytes
from sparsefleet.sparsity.effective import Sites, effective_nnz
from sparsefleet.sparsity.unevenness import unevenness
from sparsefleet.trial.build import Network
from sparsefleet.trial.record import Counts, LayerCount
from sparsefleet.trial.spec import TrialSpec

_CHUNK = 1 << 22


def counts(network: Network, optimizer: torch.optim.Optimizer, spec: TrialSpec) -> Counts:
    """Connections asked, realised and effective, parameters, and resident bytes by role."""
    sites = {name: math.prod(shape) for name, shape in network.shapes.items()}
    nnz = {name: network.sparse[name].nnz if name in network.sparse else sites[name] for name in network.shapes}
    effective = _effective(network)
    layers = [
        LayerCount(
            name=name,
            shape=shape,
            execution=network.sparse[name].execution if name in network.sparse else "dense",
            nnz_asked=network.nnz_asked[name],
            nnz=nnz[name],
            nnz_effective=effective.get(name),
            topology=network.sparse[name].topology if name in network.sparse else "free",
            value_bits=network.sparse[name].value_bits if name in network.sparse else None,
            **_spread(network.sparse.get(name)),
        )
        for name, shape in network.shapes.items()
    ]
    n_prunable, n_live = sum(sites.values()), sum(nnz.values())
    params = network.n_params_dense - n_prunable + n_live - network.n_beside
    by_role = resident_bytes(network.module, optimizer)
    stored, dense = stored_bytes(network.module)
    if network.is_compact:  # which is dense itself, and not the network that it was
        dense += (network.n_params_dense - params) * next(network.module.parameters()).element_size()
    return Counts(
        layers=layers,
        nnz_weights=n_live,
        total_weights_prunable=n_prunable,
        total_params_model=network.n_params_dense,
        params=params,
        resident_bytes=sum(by_role.values()),
        resident_by_role=by_role,
        stored_bytes=stored,
        compression=dense / stored if stored else 1.0,
        density_asked=spec.density,
        density_realised=n_live / n_prunable if n_prunable else 1.0,
        density_model=params / network.n_params_dense if network.n_params_dense else 1.0,
    )


def _spread(module: SparseModule | None) -> dict[str, float]:
    if module is None or module.nnz == 0:
        return {}
    (n_out, n_in), flat = module.matrix_shape, module.flat_sites()
    fan_in, fan_out = (torch.zeros(n, dtype=torch.int64, device=flat.device) for n in (n_out, n_in))
    for part in torch.split(flat, _CHUNK):
        fan_in += torch.bincount(part // n_in, minlength=n_out)
        fan_out += torch.bincount(part % n_in, minlength=n_in)
    return {"fan_in_cv": unevenness(fan_in), "fan_out_cv": unevenness(fan_out)}


def chain(network: Network) -> list[tuple[tuple[int, int], Sites]] | None:
    """The prunable layers, those kept dense among them, input to output, or None where they are not Linear layers one after the other.

    They are if every module above them is an ``nn.Sequential``, in which nothing can go around a layer, and their widths fit.
    """
    if not network.sparse or not all(_is_in_sequence(network.module, name) for name in network.prunable):
        return None
    layers: list[tuple[tuple[int, int], Sites]] = []
    for name in network.prunable:
        part = network.module.get_submodule(name)
        if isinstance(part, SparseModule) and len(network.shapes[name]) == 2:
            layers.append((part.matrix_shape, part.flat_sites))
        elif isinstance(part, nn.Linear):
            layers.append(((part.out_features, part.in_features), None))
        else:
            return None
    return layers if all(before[0][0] == after[0][1] for before, after in pairwise(layers)) else None


def _is_in_sequence(module: nn.Module, name: str) -> bool:
    above = name.split(".")[:-1]
    return all(isinstance(module.get_submodule(".".join(above[:depth])), nn.Sequential) for depth in range(len(above) + 1))


def _effective(network: Network) -> dict[str, int]:
    """Effective connections of each sparse layer of a chain; empty for a network that is none."""
    layers = chain(network)
    found = effective_nnz(layers) if layers else None
    return {name: n for name, n in zip(network.prunable, found or [], strict=False) if name in network.sparse}


def carry_slots(
    network: Network,
    slots: Mapping[Tensor, Mapping[str, Any]],
    old_parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Gives the optimizer of a converted network the slots of the old one, re-indexed to the stored connections.

    Args:
        slots: state of the old optimizer by its parameters.
        old_parameters: by name of the new parameter, the old one it came from.
    """
    sparse = {id(module.weight_parameter): module for module in network.sparse.values()}
    for name, parameter in network.module.named_parameters():
        old = old_parameters.get(name, parameter)
        for key, value in slots.get(old, {}).items():
            if isinstance(value, Tensor) and value.dim() and value.shape == old.shape and name in network.places:
                value = value.reshape(-1)[network.places[name].to(value.device)].view_as(parameter)
            elif isinstance(value, Tensor) and value.dim() and value.shape == old.shape and id(parameter) in sparse:
                module = sparse[id(parameter)]
                value = module.as_stored(value.reshape(-1)[module.flat_sites()])
            optimizer.state[parameter][key] = value
