"""From a network on the meta device to one that computes, with the weights of a seed; absent weights are never allocated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparsefleet.connections import Connections, check_sites
from sparsefleet.errors import PluginError, UserError
from sparsefleet.nn.bounds import spread
from sparsefleet.nn.layer_norm import fuse_norms
from sparsefleet.nn.masked import MaskedModule
from sparsefleet.nn.module import SparseModule
from sparsefleet.nn.projection import fitted_draw, fitted_nnz, refuse_misfit
from sparsefleet.plugin import Connectivity, Layer
from sparsefleet.rng import Rng, key_of, uniform_at

FanIn = Literal["dense", "live"]


def weight_shape(module: nn.Module) -> tuple[int, ...]:
    """Shape of a prunable module's weight, on any device."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() < 2:
        raise PluginError(f"{type(module).__name__} has no weight matrix, so it cannot be prunable")
    return tuple(weight.shape)


def initial_weights(conn: Connections, seed: int, fan_in: FanIn, dtype: torch.dtype, template: nn.Module) -> Tensor:
    """``(nnz,)`` weights as torch's own modules draw them; a function of (seed, layer, site) alone.

    Uniform in ±1/sqrt(n_in), or in the bound that ``template`` says (gates and projections have other ones than Linear). With
    ``fan_in="dense"`` the bound is that of the dense layer, so that every storage and density of one seed shares its weights; with
    ``"live"`` each output unit's grows as its connections become fewer, to 1/sqrt(live). An Embedding's are standard normal, its padding 0.
    """
    uniform = uniform_at(key_of(seed, "weight", conn.layer), conn.flat)
    if isinstance(template, nn.Embedding):
        normal: Tensor = torch.special.ndtri(uniform.clamp_(min=2.0**-54))
        if template.padding_idx is not None:
            normal.masked_fill_(conn.row == template.padding_idx, 0)
        return normal.to(dtype)
    draws = uniform.mul_(2).sub_(1)
    if fan_in == "dense":
        return spread(draws, template, conn.n_in).to(dtype)
    live = conn.per_row().clamp(min=1).to(torch.float64)
    if not hasattr(template, "init_bounds"):
        return draws.mul_(live.rsqrt()[conn.row]).to(dtype)
    return spread(draws, template, conn.n_in).mul_((conn.n_in / live).sqrt()[conn.row]).to(dtype)


def initial_bias(name: str, shape: tuple[int, int], seed: int, dtype: torch.dtype, device: torch.device, template: nn.Module) -> Tensor:
    """``(n_out,)`` uniform in the bound of ``template``."""
    uniform = uniform_at(key_of(seed, "bias", name), torch.arange(shape[0], device=device))
    return spread(uniform.mul_(2).sub_(1), template, shape[1], bias=True).to(dtype)


def draw_connections(
    name: str,
    shape: tuple[int, ...],
    nnz: int,
    connectivity: Connectivity | None,
    seed: int,
    device: torch.device,
    layer: Layer | None = None,
) -> Connections:
    """Connections without weights: all sites, or those that ``connectivity`` draws as ``layer`` can hold them; exact count, checked."""
    matrix = (shape[0], math.prod(shape[1:]))
    n_sites = math.prod(matrix)
    topology, tile = (layer.topology, layer.tile) if layer else ("free", 1)
    if connectivity is not None and not connectivity.reads_files:
        nnz = fitted_nnz(nnz, matrix, topology, tile)
    if nnz == n_sites:
        flat = torch.arange(n_sites, device=device)
    elif connectivity is None:
        raise PluginError(f"layer {name!r}: {nnz} of {n_sites} connections asked, but no connectivity to draw them")
    else:
        drawn = Rng(seed, "connectivity", name)
        flat = check_sites(fitted_draw(connectivity, name, matrix, nnz, drawn, (topology, tile)).to(device), matrix, layer=name)
        if connectivity.reads_files:
            refuse_misfit(f"connectivity {connectivity.name!r}", name, flat, matrix, (topology, tile))
        if flat.numel() != nnz and tile == 1:
            raise PluginError(f"connectivity {connectivity.name!r} drew {flat.numel()} connections for layer {name!r}, asked {nnz}")
    return Connections(name, matrix, flat // matrix[1], flat % matrix[1], torch.empty(0, device=device))


def materialise(
    network: nn.Module,
    modules: Mapping[str, tuple[Layer, Connections]],
    *,
    seed: int,
    fan_in: FanIn = "dense",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> dict[str, SparseModule]:
    """Replaces the named modules of ``network`` (on the meta device, in place) and initialises everything else.

    Args:
        modules: by qualified name, the layer that stores the module and its connections (their weights are drawn here).

    Returns:
        The replaced modules that hold connections, in the order of ``modules``.
    """
    device = torch.device(device)
    replaced: dict[str, SparseModule] = {}
    done: set[int] = set()
    for name, (layer, conn) in modules.items():
        template = network.get_submodule(name)
        conn.weight = initial_weights(conn, seed, fan_in, dtype, template)
        has_bias = getattr(template, "bias", None) is not None
        bias = initial_bias(name, conn.shape, seed, dtype, device, template) if has_bias else None
        kind = type(template).__name__
        if kind not in layer.kinds:
            raise UserError(f"layer {layer.name!r} cannot store a {kind} ({name})", fix=f"it stores: {', '.join(layer.kinds)}")
        kernel = math.prod(weight_shape(template)[2:])
        built: Any = layer.build(template, conn, bias)
        if isinstance(built, SparseModule):
            built.layer_name, built.kernel, built.init_key = name, kernel, key_of(seed, "weight", name)
            replaced[name] = built
        replace_module(network, name, built)
        done.update(id(part) for part in built.modules())
        del conn  # or it would stand beside the next layer's, which ``modules`` may draw only now
    for name, module in network.named_modules():
        if id(module) not in done:
            _initialise(module, name, seed, dtype, device)
    fuse_norms(network, list(replaced.values()))
    return replaced


def rebuilt(old: nn.Module, conn: Connections, layer: Layer) -> SparseModule:
    """The module that stores ``old`` as ``layer`` does, with the sites of ``conn`` and old's weights there, and its bias.

    Args:
        old: a torch module with a dense weight, or a sparse module that has all of these sites.
    """
    if isinstance(old, SparseModule):
        values, shape, bias = conn.weight, old.matrix_shape, getattr(old, "bias", None)
        if isinstance(old, MaskedModule):
            template = _on_meta(old.plain())
        else:
            with torch.device("meta"):
                template = nn.Linear(shape[1], shape[0], bias=bias is not None)
    else:
        weight, bias = old.get_parameter("weight"), getattr(old, "bias", None)
        values = weight.detach().reshape(-1)[conn.flat]
        template = _on_meta(old)
    return layer.build(template, replace(conn, weight=values), bias)


def _on_meta(module: nn.Module) -> nn.Module:
    """A copy of ``module`` without its values."""
    own = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in module.parameters()}
    return deepcopy(module, {key: nn.Parameter(value) for key, value in own.items()})


def replace_module(network: nn.Module, name: str, module: nn.Module) -> None:
    """Puts ``module`` in the place of the module called ``name``."""
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


def _initialise(module: nn.Module, name: str, seed: int, dtype: torch.dtype, device: torch.device) -> None:
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    if not any(tensor.is_meta for tensor in own):
        for tensor in own:
            tensor.data = tensor.data.to(device)
        return
    reset = getattr(module, "reset_parameters", None)
    if reset is None:
        raise PluginError(
            f"module {name!r} ({type(module).__name__}) was built on the meta device and has no reset_parameters()",
            fix="give it a reset_parameters() method that fills its tensors",
        )
    module.to_empty(device=device, recurse=False)
    for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)  # before it is filled: a float64 weight has float64 draws
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
        matrix = (module.weight.shape[0], module.weight[0].numel())
        flat = torch.arange(math.prod(matrix), device=device)
        conn = Connections(name, matrix, flat // matrix[1], flat % matrix[1], torch.empty(0))
        with torch.no_grad():
            module.weight.view(-1).copy_(initial_weights(conn, seed, "dense", dtype, module))
            bias = getattr(module, "bias", None)
            if bias is not None:
                bias.copy_(initial_bias(name, matrix, seed, dtype, device, module))
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key_of(seed, "module", name))
            reset()
