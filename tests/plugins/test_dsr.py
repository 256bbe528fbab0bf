"""DSR (arXiv 1902.05967, Algorithm 1) against numpy, and its threshold by hand."""

import copy

import numpy as np
import pytest
import torch
from by_hand import connections
from small_net import biases, dense_weights, examples, gradients, masks, sparse_net, train_step
from sparsefleet_plugins.layers.csr import Csr
from sparsefleet_plugins.layers.masked import Masked
from sparsefleet_plugins.rewiring.dsr import DSR
from torch import nn

from sparsefleet import Progress, Rng
from sparsefleet.nn import Sparsifier
from sparsefleet.nn.topology import Topology

LR, STEPS = 0.2, 40


class Reference:
    """Dense arrays, loops over sites; only the draws come from the product's generator."""

    def __init__(self, plugin, weights, live, bias):
        self.w, self.live, self.bias, self.threshold = weights, live, bias, plugin.threshold
        self.wanted = plugin.prune_share * sum(w.size for w in weights.values())

    def step(self, x, y):
        _, by_weight, by_bias, _ = gradients(self.w, self.bias, x, y)
        for name in self.w:
            self.w[name] = (self.w[name] - LR * by_weight[name]) * self.live[name]
            self.bias[name] = self.bias[name] - LR * by_bias[name]

    def rewire(self, step):
        survivors, n_pruned = {}, 0
        for name, w in self.w.items():
            for site in np.ndindex(w.shape):
                if self.live[name][site] and abs(w[site]) < self.threshold:
                    self.live[name][site], w[site], n_pruned = False, 0, n_pruned + 1
            survivors[name] = int(self.live[name].sum())
        if n_pruned < 0.9 * self.wanted:
            self.threshold *= 2
        elif n_pruned > 1.1 * self.wanted:
            self.threshold /= 2
        part = {name: n_pruned * n / sum(survivors.values()) for name, n in survivors.items()}
        grown = {name: int(part[name]) for name in part}
        for name in sorted(part, key=lambda name: grown[name] - part[name])[: n_pruned - sum(grown.values())]:
            grown[name] += 1
        for name, live in self.live.items():
            absent = np.flatnonzero(~live.reshape(-1))
            live.reshape(-1)[absent[Rng(0, "rewire", name, step).distinct(grown[name], len(absent)).numpy()]] = True
        return n_pruned


@pytest.mark.parametrize("layer", [Masked(), Csr()], ids=lambda layer: layer.name)
def test_equals_algorithm_1(layer):
    network, modules = sparse_net(density=0.4, layer=layer)
    plugin = DSR(every=2, prune_share=0.04, threshold=0.2)
    reference = Reference(plugin, dense_weights(modules), masks(modules), biases(modules))
    topology = Topology(modules, torch.optim.SGD(network.parameters(), lr=LR), seed=0)
    topology.start(plugin)
    total, first, thresholds = topology.nnz, [module.nnz for module in modules.values()], set()
    x, y = examples()
    for step in range(1, STEPS + 1):
        train_step(network, modules, topology, x, y)
        reference.step(x, y)
        if plugin.due(Progress(step, STEPS, 10)):
            changes = topology.rewire(plugin, Progress(step, STEPS, 10))
            n_pruned = reference.rewire(step)
            assert sum(change.n_dropped for change in changes) == n_pruned
            assert sum(change.n_peak for change in changes) == total
            thresholds.add(reference.threshold)
            assert {float(module.method_memory["next"]) for module in modules.values()} == {reference.threshold}
        assert topology.nnz == total
        for name, mask in masks(modules).items():
            assert (mask == reference.live[name]).all(), f"step {step}, layer {name}"
    for name, weight in dense_weights(modules).items():
        np.testing.assert_allclose(weight, reference.w[name], rtol=1e-9, atol=1e-13)
    assert [module.nnz for module in modules.values()] != first
    assert len(thresholds) > 2  # up and down


def two(weights, n_zeros=100):
    """Layers with these weights and ``n_zeros`` absent sites each."""
    return {str(i): connections([[*row, *[0.0] * n_zeros]], [[True] * len(row) + [False] * n_zeros]) for i, row in enumerate(weights)}


@pytest.mark.parametrize(("n_small", "factor"), [(8, 2), (9, 1), (11, 1), (12, 0.5)])
def test_the_threshold_is_adapted_outside_the_tolerance_alone(n_small, factor):
    layers = two([[0.1] * n_small + [1.0] * 50, [1.0] * 30])
    plugin = DSR(prune_share=10 / sum(conn.n_sites for conn in layers.values()), threshold=0.25)
    for conn in layers.values():
        assert not conn.memory
    target = plugin.redistribute(layers, Progress(10, 100, 10))
    assert sum(target.values()) == n_small + 80
    for conn in layers.values():
        assert float(conn.memory["threshold"]) == 0.25  # this update's
        assert float(conn.memory["next"]) == 0.25 * factor
    plugin.redistribute(layers, Progress(20, 100, 10))
    assert float(layers["0"].memory["threshold"]) == 0.25 * factor


def test_prunes_strictly_below_and_regrows_by_the_survivors():
    layers = two([[0.25] * 30 + [0.2] * 6, [0.3] * 10 + [0.1] * 2])
    plugin, now = DSR(threshold=0.25), Progress(10, 100, 10)
    target = plugin.redistribute(layers, now)
    assert target == {"0": 30 + 6, "1": 10 + 2}  # 8 in proportion 30 : 10
    keep, new = plugin.update(layers["0"], now, Rng(0), target["0"])
    assert keep.tolist() == [True] * 30 + [False] * 6
    assert new.shape == (2, 6)
    assert plugin.grown_weight(layers["0"], new, Rng(0)).abs().max() == 0


def test_no_layer_is_emptied():
    layers = two([[0.1, -0.2, 0.2], [1.0] * 7])
    plugin, now = DSR(threshold=0.5), Progress(10, 100, 10)
    target = plugin.redistribute(layers, now)
    assert sum(target.values()) == 10
    keep, _ = plugin.update(layers["0"], now, Rng(0), target["0"])
    assert keep.tolist() == [False, True, False]  # the largest, of equal ones the first


def test_a_full_layer_hands_its_share_on():
    layers = {**two([[1.0] * 40 + [0.1] * 10], n_zeros=0), "b": two([[1.0] * 5 + [0.1] * 15])["0"]}
    assert DSR(threshold=0.5).redistribute(layers, Progress(10, 100, 10)) == {"0": 50, "b": 5 + 15}


def test_the_threshold_stays_a_number():
    layers = two([[0.0] * 80 + [1.0] * 20, [0.0] * 80 + [1.0] * 20])  # exact zeros are below any threshold
    plugin = DSR(prune_share=0.001)
    for step in range(1, 3000):
        plugin.redistribute(layers, Progress(step, 10_000, 10))
    assert float(layers["0"].memory["next"]) > 0
    layers = two([[1e3] * 4])
    for step in range(1, 40):  # a target beyond the connections would prune all of them for ever
        plugin = DSR(prune_share=1.0)
        plugin.redistribute(layers, Progress(step, 10_000, 10))
    assert float(layers["0"].memory["next"]) <= 4 * 1e3


def test_a_sparsifier_goes_on_with_its_threshold():
    def made():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return model, Sparsifier(model, optimizer, rewirer={"dsr": {"every": 1}}, density=0.3, total_steps=40)

    def train(model, sparsifier, steps):
        for step in steps:
            gen = torch.Generator().manual_seed(step)
            sparsifier.optimizer.zero_grad()
            model(torch.randn(8, 12, generator=gen).double()).square().sum().backward()
            sparsifier.step()
        return sparsifier.masks()

    whole = train(*made(), range(16))
    model, stopped = made()
    train(model, stopped, range(8))
    saved = [copy.deepcopy(part.state_dict()) for part in (model, stopped.optimizer, stopped)]
    for keeps in (True, False):
        model, resumed = made()
        if not keeps:
            saved[2]["memory"] = {name: {} for name in resumed.modules}
        for part, state in zip((model, resumed.optimizer, resumed), saved, strict=True):
            part.load_state_dict(state)
        found = train(model, resumed, range(8, 16))
        assert all(torch.equal(found[name], sites) for name, sites in whole.items()) == keeps


def test_defaults_are_the_authors_package():
    assert DSR().model_dump() == {"every": 100, "stop": 1.0, "prune_share": 0.01, "threshold": 0.001}
