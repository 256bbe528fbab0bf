"""A three-layer network for the throwaway methods, and the same network in numpy with gradients written out by hand."""

from itertools import pairwise

import numpy as np
import torch
from sparsefleet_plugins.connectivity.random import RandomConnectivity
from sparsefleet_plugins.layers.masked import Masked
from torch import nn

from sparsefleet import Connections, DataInfo, Rng
from sparsefleet.nn.topology import Topology
from sparsefleet.trial.calibrate import NetworkCalibration

SIZES = (8, 7, 6, 4)
INFO = DataInfo("classification", (8,), 4)


def sparse_net(*, density=0.5, layer=None, seed=0, sites=None):
    """``(network, modules)``: Linear, ReLU, Linear, ReLU, Linear in float64 with ``density`` of the sites.

    ``sites`` maps a shape to its ``(2, nnz)`` sites in place of random ones.
    """
    layer, modules, parts = layer or Masked(), {}, []
    for i, (n_in, n_out) in enumerate(pairwise(SIZES)):
        name, shape = f"{2 * i}", (n_out, n_in)
        nnz = round(density * n_in * n_out)
        row, col = sites(shape) if sites else RandomConnectivity().draw(shape, nnz, Rng(seed, "sites", name))
        weight = Rng(seed, "weights", name).normal(row.numel()) / n_in**0.5
        module = layer.build(
            nn.Linear(n_in, n_out, device="meta"),
            Connections(name, shape, row, col, weight),
            0.1 * Rng(seed, "bias", name).normal(n_out),
        )
        module.layer_name = name
        modules[name] = module
        parts += [module, nn.ReLU()]
    return nn.Sequential(*parts[:-1]), modules


def examples(n=32, seed=0):
    """``(x, y)``: ``y`` depends on ``x``."""
    x = Rng(seed, "x").normal(n * SIZES[0]).view(n, -1)
    return x, (x[:, :4] + 0.5 * x[:, 4:]).argmax(1)


def calibration(network, modules, topology=None, *, n=32):
    """The core's calibration of ``network``."""
    topology = topology or Topology(modules, None, seed=0)
    return NetworkCalibration(network, modules, topology.connections("prune", 0), [examples(n)], INFO)


def dense_weights(modules):
    """``(n_out, n_in)`` float64 arrays with zeros at absent sites."""
    out = {}
    for name, module in modules.items():
        weight = np.zeros(module.matrix_shape)
        weight.reshape(-1)[module.flat_sites().numpy()] = module.values().numpy()
        out[name] = weight
    return out


def masks(modules):
    """Boolean ``(n_out, n_in)`` arrays."""
    out = {}
    for name, module in modules.items():
        mask = np.zeros(module.matrix_shape, dtype=bool)
        mask.reshape(-1)[module.flat_sites().numpy()] = True
        out[name] = mask
    return out


def biases(modules):
    return {name: module.bias.detach().numpy().copy() for name, module in modules.items()}


def gradients(weights, bias, x, y, temperature=1.0):
    """``(loss, by weight, by bias, inputs of each layer)`` of the softmax cross entropy of ``logits / temperature``; no autograd."""
    names, inputs, h = list(weights), {}, np.asarray(x)
    for name in names:
        inputs[name] = h
        z = h @ weights[name].T + bias[name]
        h = z if name == names[-1] else np.maximum(z, 0)
    logits = z / temperature
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    n, y = len(p), np.asarray(y)
    loss = -np.log(p[np.arange(n), y]).mean()
    up = p.copy()
    up[np.arange(n), y] -= 1
    up /= n * temperature
    by_weight, by_bias = {}, {}
    for name in reversed(names):
        by_weight[name], by_bias[name] = up.T @ inputs[name], up.sum(0)
        up = (up @ weights[name]) * (inputs[name] > 0)
    return loss, by_weight, by_bias, inputs


def lowest(values, sites, k):
    """The k of ``sites`` (flat) with the lowest value; of equal ones the later go first."""
    return set(sorted(sites, key=lambda site: (values[site], -site))[:k])


def train_step(network, modules, topology, x, y):
    """Forward, backward and one optimizer step, as the trial makes it."""
    topology.watch_absent(True)
    topology.optimizer.zero_grad(set_to_none=True)
    loss = torch.nn.functional.cross_entropy(network(x), y)
    loss.backward()
    topology.optimizer.step()
    topology.enforce()
    return float(loss.detach())
