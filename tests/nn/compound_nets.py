"""Networks with exposed modules, their gates stored as a layer plugin stores them, and what torch's own module computes with the same weights."""

import math
from functools import cache
from types import SimpleNamespace

import torch
from torch import nn

from sparsefleet.nn import SparseModule
from sparsefleet.nn.expose import exposed
from sparsefleet.nn.materialise import draw_connections, materialise
from sparsefleet.registry import Registry

LAYERS = ("masked", "csr", "fixed-fan-in", "block", "quantised")


registry = cache(Registry)


def plugin(family, name, **params):
    return registry().build(family, SimpleNamespace(name=name, params=params))


def linears(network):
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]


def sparse(make, layer, *, density=0.3, seed=0, names=None, dtype=torch.float64):
    """(network, its sparse modules): the exposed network that ``make()`` builds, its Linear modules stored by the plugin ``layer``."""
    with torch.device("meta"):
        network = exposed(nn.Sequential(make()))
    stored, random = plugin("layer", layer), plugin("connectivity", "random")
    modules = {}
    for name in linears(network) if names is None else names:
        shape = tuple(network.get_submodule(name).weight.shape)
        nnz = max(1, round(density * math.prod(shape)))
        modules[name] = stored, draw_connections(name, shape, nnz, random, seed, torch.device("cpu"), stored)
    found = materialise(network, modules, seed=seed, dtype=dtype)
    return network, found


def dense_weight(module):
    """What a Linear or a sparse module multiplies with, as a matrix with its zeros."""
    if not isinstance(module, SparseModule):
        return module.weight.detach()
    flat = torch.zeros(module.matrix_shape[0] * module.matrix_shape[1], dtype=module.values().dtype)
    flat[module.flat_sites()] = module.multiplied()
    return flat.view(module.matrix_shape)


def as_torch(ours, like):
    """torch's module ``like`` with the weights that ``ours`` multiplies with, put together by the names and rows of ``sources``."""
    plain = type(ours).from_torch(like)  # Linear gates, for the names
    owners = {id(p): (name.rpartition(".")[0], name.rpartition(".")[2]) for name, p in plain.named_parameters()}
    with torch.no_grad():
        for parameter, name, rows in plain.sources():
            owner, key = owners[id(parameter)]
            module = ours.get_submodule(owner)
            value = dense_weight(module) if key == "weight" and owner else getattr(module, key)
            like.get_parameter(name)[rows] = value
    return like


def gradients_of(ours, like):
    """Pairs of gradients, of ours at the connections and of torch's there, for every parameter."""
    plain = type(ours).from_torch(like)
    owners = {id(p): (name.rpartition(".")[0], name.rpartition(".")[2]) for name, p in plain.named_parameters()}
    for parameter, name, rows in plain.sources():
        owner, key = owners[id(parameter)]
        module, theirs = ours.get_submodule(owner), like.get_parameter(name).grad[rows]
        if key == "weight" and isinstance(module, SparseModule):
            yield f"{owner}.{key}", module.grad_values(), theirs.reshape(-1)[module.flat_sites()]
        else:
            yield f"{owner}.{key}", getattr(module, key).grad, theirs


def calls_its_gates(module):
    """The same recurrent module, that calls its gates one by one: somebody listens to one."""
    next(module.layer0.from_hidden.children()).register_forward_hook(lambda *_: None)
    return module
