"""Throwaway SNFS (arXiv 1907.04840, section 3) in the contract, against numpy.

What it needed: ``needs_dense`` with a dense EMA in ``conn.dense.state``, ``redistribute``, an update once per epoch (``every: null``).
"""

import numpy as np
import torch
from pydantic import Field
from small_net import biases, dense_weights, examples, gradients, lowest, masks, sparse_net, train_step

from sparsefleet import Progress, Rewirer
from sparsefleet.nn.topology import Topology

LR, BETA, STEPS, EPOCH = 0.2, 0.9, 24, 4


class Snfs(Rewirer):
    """Moves budget to layers with a large mean momentum, and grows where the momentum is largest."""

    name = "snfs"
    paper = "arXiv 1907.04840, section 3"
    needs_dense = True
    every: int | None = Field(None, ge=1, description="steps between updates; null: the end of every epoch")
    drop_fraction: float = Field(0.5, gt=0, le=1, description="prune rate at the start")
    stop: float = Field(1.0, gt=0, le=1, description="share of the training after which the topology stays")
    beta: float = Field(0.9, ge=0, lt=1, description="of the momentum")

    def on_step(self, conn, lr, rng):
        momentum = conn.dense.state.setdefault("momentum", torch.zeros_like(conn.dense.weight))
        momentum.mul_(self.beta).add_(conn.dense.grad, alpha=1 - self.beta)

    def redistribute(self, layers, progress):
        left = {name: conn.nnz - self.drop_count(conn, progress) for name, conn in layers.items()}
        mean = {name: float(conn.dense.state["momentum"].abs().view(-1)[conn.flat].mean()) for name, conn in layers.items()}
        free = sum(conn.nnz for conn in layers.values()) - sum(left.values())
        room = {name: conn.n_sites - left[name] for name, conn in layers.items()}
        grown = {name: min(room[name], int(free * mean[name] / sum(mean.values()))) for name in layers}
        for name in sorted(layers, key=lambda name: -mean[name]):  # full layers, and what rounding left
            more = min(room[name] - grown[name], free - sum(grown.values()))
            grown[name] += more
        return {name: left[name] + grown[name] for name in layers}

    def grow(self, conn, k, rng):
        return conn.best_absent(k, conn.dense.state["momentum"])


class Reference:
    """Dense arrays, loops over sites."""

    def __init__(self, weights, live, bias):
        self.w, self.live, self.bias = weights, live, bias
        self.m = {name: np.zeros_like(weight) for name, weight in weights.items()}

    def step(self, x, y):
        _, by_weight, by_bias, _ = gradients({name: w * self.live[name] for name, w in self.w.items()}, self.bias, x, y)
        for name in self.w:
            self.w[name] = (self.w[name] - LR * by_weight[name]) * self.live[name]
            self.bias[name] = self.bias[name] - LR * by_bias[name]
            self.m[name] = BETA * self.m[name] + (1 - BETA) * by_weight[name]

    def rewire(self, step):
        names = list(self.w)
        mean = {name: np.abs(self.m[name][self.live[name]]).mean() for name in names}
        rate = 0.5 / 2 * (1 + np.cos(np.pi * step / STEPS))
        n_drop = {name: int(rate * self.live[name].sum() + 1e-9) for name in names}
        for name in names:
            sites = np.flatnonzero(self.live[name].reshape(-1))
            for site in lowest(np.abs(self.w[name].reshape(-1)), sites, n_drop[name]):
                self.live[name].reshape(-1)[site] = False
                self.w[name].reshape(-1)[site] = 0
        total = sum(n_drop.values())
        room = {name: int((~self.live[name]).sum()) for name in names}
        grown = {name: min(room[name], int(total * mean[name] / sum(mean.values()))) for name in names}
        while sum(grown.values()) < total:
            best = max((name for name in names if grown[name] < room[name]), key=lambda name: mean[name])
            grown[best] += 1
        for name in names:
            absent = np.flatnonzero(~self.live[name].reshape(-1))
            magnitude = np.abs(self.m[name].reshape(-1))
            for site in sorted(absent, key=lambda site: (-magnitude[site], site))[: grown[name]]:
                self.live[name].reshape(-1)[site] = True


def test_equals_the_reference():
    network, modules = sparse_net(density=0.4)
    reference = Reference(dense_weights(modules), masks(modules), biases(modules))
    topology = Topology(modules, torch.optim.SGD(network.parameters(), lr=LR), seed=0)
    plugin, total = Snfs(beta=BETA), topology.nnz
    topology.start(plugin)
    x, y = examples()
    for step in range(1, STEPS + 1):
        train_step(network, modules, topology, x, y)
        topology.on_step(plugin, LR, step - 1)
        reference.step(x, y)
        if plugin.due(Progress(step, STEPS, EPOCH)):
            topology.rewire(plugin, Progress(step, STEPS, EPOCH))
            reference.rewire(step)
        assert topology.nnz == total
        for name, mask in masks(modules).items():
            assert (mask == reference.live[name]).all(), f"step {step}, layer {name}"
    for name, weight in dense_weights(modules).items():
        np.testing.assert_allclose(weight, reference.w[name] * reference.live[name], rtol=1e-9, atol=1e-13)
    assert [module.nnz for module in modules.values()] != [22, 17, 10]  # budget moved between layers


def test_a_full_layer_hands_its_share_on():
    network, modules = sparse_net(density=0.9)
    topology = Topology(modules, torch.optim.SGD(network.parameters(), lr=LR), seed=0)
    plugin, total = Snfs(), topology.nnz
    topology.start(plugin)
    x, y = examples()
    train_step(network, modules, topology, x, y)
    topology.on_step(plugin, LR, 0)
    for module, scale in zip(modules.values(), (1e-6, 1.0, 1e-6), strict=True):
        module.dense_state["momentum"].mul_(scale)
    topology.rewire(plugin, Progress(1, STEPS, EPOCH))
    assert topology.nnz == total
    assert modules["2"].nnz == 42  # all of its sites
