"""SNFS (arXiv 1907.04840, section 3) against numpy, and its redistribution by hand."""

import numpy as np
import pytest
import torch
from by_hand import cosine_slowly
from small_net import biases, dense_weights, examples, gradients, lowest, masks, sparse_net, train_step
from sparsefleet_plugins.rewiring.snfs import SNFS

from sparsefleet import Connections, Progress, Rng
from sparsefleet.connections import DenseValues
from sparsefleet.nn.topology import Topology

LR, BETA, STEPS, EPOCH = 0.2, 0.9, 24, 4


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
        names, n_drop = list(self.w), {}
        mean = {name: np.abs(self.m[name][self.live[name]]).mean() for name in names}
        for name in names:
            zeros = (~self.live[name]).mean()
            rate = cosine_slowly(0.5, step, STEPS)
            if zeros < 0.2 and mean[name] > np.mean(list(mean.values())):
                rate = min(rate, zeros)
            n_drop[name] = int(rate * self.live[name].sum() + 1e-9)
            sites = np.flatnonzero(self.live[name].reshape(-1))
            for site in lowest(np.abs(self.w[name].reshape(-1)), sites, n_drop[name]):
                self.live[name].reshape(-1)[site] = False
                self.w[name].reshape(-1)[site] = 0
        room = {name: int((~self.live[name]).sum()) for name in names}
        for name, n_grow in shares_slowly(sum(n_drop.values()), mean, room).items():
            absent = np.flatnonzero(~self.live[name].reshape(-1))
            magnitude = np.abs(self.m[name].reshape(-1))
            for site in sorted(absent, key=lambda site: (-magnitude[site], site))[:n_grow]:
                self.live[name].reshape(-1)[site] = True


def shares_slowly(total, mean, room):
    """Whole parts in proportion to the mean; one more for the largest fractions; then one at a time to layers with room, in equal parts."""
    part = {name: total * mean[name] / sum(mean.values()) for name in mean}
    grown = {name: int(part[name]) for name in mean}
    for name in sorted(mean, key=lambda name: grown[name] - part[name])[: total - sum(grown.values())]:
        grown[name] += 1
    grown = {name: min(room[name], grown[name]) for name in mean}
    extra = dict.fromkeys(mean, 0)
    while sum(grown.values()) + sum(extra.values()) < total:
        least = min((name for name in mean if grown[name] + extra[name] < room[name]), key=lambda name: extra[name])
        extra[least] += 1
    return {name: grown[name] + extra[name] for name in mean}


@pytest.mark.parametrize("density", [0.4, 0.75])
def test_equals_the_reference(density):
    network, modules = sparse_net(density=density)
    reference = Reference(dense_weights(modules), masks(modules), biases(modules))
    topology = Topology(modules, torch.optim.SGD(network.parameters(), lr=LR), seed=0)
    plugin, first, most = SNFS(beta=BETA), {name: module.nnz for name, module in modules.items()}, 0.0
    topology.start(plugin)
    x, y = examples()
    for step in range(1, STEPS + 1):
        train_step(network, modules, topology, x, y)
        topology.on_step(plugin, LR, step - 1)
        reference.step(x, y)
        if plugin.due(Progress(step, STEPS, EPOCH)):
            topology.rewire(plugin, Progress(step, STEPS, EPOCH))
            reference.rewire(step)
        assert topology.nnz == sum(first.values())
        for name, mask in masks(modules).items():
            assert (mask == reference.live[name]).all(), f"step {step}, layer {name}"
            most = max(most, mask.mean())
    for name, weight in dense_weights(modules).items():
        np.testing.assert_allclose(weight, reference.w[name] * reference.live[name], rtol=1e-9, atol=1e-13)
    assert {name: module.nnz for name, module in modules.items()} != first  # connections moved between layers
    assert (most == 1) == (density == 0.75)  # and one filled up


def layer(name, weight, momentum):
    """A layer whose connections are its non-zero weights."""
    weight, momentum = torch.tensor(weight), torch.tensor(momentum)
    row, col = torch.nonzero(weight, as_tuple=True)
    return Connections(name, tuple(weight.shape), row, col, weight[row, col], dense=DenseValues(weight, None, {"momentum": momentum}))


def test_shares_are_those_of_the_mean_momentum_of_connections():
    # what absent sites hold counts for growing and not for the share
    a = layer("a", [[1.0, 2.0, 3.0, 4.0] + [0.0] * 8], [[3.0, -3.0, 3.0, -3.0] + [90.0] * 8])
    b = layer("b", [[1.0, 2.0, 3.0, 4.0] + [0.0] * 8], [[1.0, 1.0, 1.0, 1.0, 0.0, 5.0, -7.0, 6.0] + [0.0] * 4])
    plugin, now = SNFS(drop_fraction=1.0, every=1), Progress(50, 100, 10)  # the cosine is at one half: 2 of 4 each
    target = plugin.redistribute({"a": a, "b": b}, now)
    assert target == {"a": 2 + 3, "b": 2 + 1}
    keep, new = plugin.update(b, now, Rng(0), target["b"])
    assert keep.tolist() == [False, False, True, True]
    assert new.tolist() == [[0], [6]]


def test_a_full_layer_hands_its_share_to_the_others_equally():
    small = layer("small", [[1.0, 0.0]], [[100.0, 100.0]])
    wide = [[1.0] * 10 + [0.0] * 30]
    b, c = layer("b", wide, [[1e-3] * 40]), layer("c", wide, [[1e-6] * 40])
    target = SNFS(drop_fraction=1.0, every=1).redistribute({"small": small, "b": b, "c": c}, Progress(50, 100, 10))
    assert target == {"small": 2, "b": 5 + 5, "c": 5 + 4}  # 10 are dropped, small takes 1: 9 are left


def test_a_layer_that_fills_up_drops_no_larger_share_than_that_of_its_zeros():
    full, other = [[1.0] * 9 + [0.0]], [[1.0] * 9 + [0.0] * 91]
    now, plugin = Progress(1, 10_000, 10), SNFS()
    for momentum, n_drop in ((2.0, 0), (0.5, 4)):  # 0.1 * 9, rounded down; a half
        growing, b = layer("a", full, [[momentum] * 10]), layer("b", other, [[1.0] * 100])
        plugin.redistribute({"a": growing, "b": b}, now)
        assert plugin.drop_count(growing, now) == n_drop
        assert plugin.drop_count(b, now) == 4


def test_layers_without_connections_or_momentum_are_no_trouble():
    empty, dead = layer("empty", [[0.0, 0.0]], [[1.0, 1.0]]), layer("dead", [[1.0, 1.0, 0.0, 0.0]], [[0.0] * 4])
    target = SNFS(drop_fraction=1.0).redistribute({"empty": empty, "dead": dead}, Progress(1, 10_000, 10))
    assert sum(target.values()) == 2


def test_momentum_is_an_average_of_the_dense_gradient():
    conn = layer("a", [[1.0, 0.0]], [[0.0, 0.0]])
    conn.dense.grad = torch.tensor([[2.0, -4.0]])
    for _ in range(2):
        SNFS(beta=0.75).on_step(conn, 0.1, Rng(0))
    assert torch.allclose(conn.dense.state["momentum"], torch.tensor([[2.0, -4.0]]) * (1 - 0.75**2))


def test_defaults_and_clock_are_the_authors():
    assert SNFS().model_dump() == {"every": None, "drop_fraction": 0.5, "stop": 1.0, "beta": 0.9}
    assert [step for step in range(41) if SNFS().due(Progress(step, 40, 10))] == [10, 20, 30]
