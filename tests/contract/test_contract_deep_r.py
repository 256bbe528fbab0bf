"""DEEP R in the contract, on two storages, against Algorithm 1 of arXiv 1711.05136 in numpy."""

import math

import numpy as np
import pytest
import torch
from small_net import biases, dense_weights, examples, gradients, masks, sparse_net, train_step
from sparsefleet_plugins.layers.csr import Csr
from sparsefleet_plugins.layers.masked import Masked
from sparsefleet_plugins.rewiring.deep_r import DeepR

from sparsefleet import Progress, Rng
from sparsefleet.nn.topology import Topology
from sparsefleet.rng import key_of, uniform_at

LR, ALPHA, T, STEPS = 0.3, 0.02, 1e-4, 40


class Reference:
    """theta, sign and dormancy at every site of a dense matrix; only the draws come from the product's generator."""

    def __init__(self, weights, live, bias):
        self.sign, self.theta, self.own = {}, {}, {}
        for name, weight in weights.items():
            draw = uniform_at(key_of(0, "weight", name), torch.arange(weight.size)).numpy().reshape(weight.shape)
            own = np.where(2 * draw - 1 < 0, -1.0, 1.0)  # sites that wake later
            self.sign[name] = np.where(live[name], np.where(weight < 0, -1.0, 1.0), own)
            self.own[name] = own
            self.theta[name] = np.where(live[name], np.abs(weight), -1.0)
        self.bias, self.n = bias, {name: int(mask.sum()) for name, mask in live.items()}

    def weights(self):
        return {name: self.sign[name] * np.where(theta > 0, theta, 0) for name, theta in self.theta.items()}

    def step(self, number, x, y):
        loss, by_weight, by_bias, _ = gradients(self.weights(), self.bias, x, y)
        for name, theta in self.theta.items():
            active = np.flatnonzero(theta.reshape(-1) > 0)
            flat, sign = theta.reshape(-1), self.sign[name].reshape(-1)
            noise = Rng(0, "step", name, number).normal(len(active)).numpy()
            for site, nu in zip(active, noise, strict=True):
                flat[site] -= LR * sign[site] * by_weight[name].reshape(-1)[site]
                flat[site] += -LR * ALPHA + math.sqrt(2 * LR * T) * nu
            dormant = np.flatnonzero(flat <= 0)
            k = self.n[name] - int((flat > 0).sum())
            wake = dormant[Rng(0, "rewire", name, number + 1).distinct(k, len(dormant)).numpy()]
            flat[wake] = 1e-12
            sign[wake] = self.own[name].reshape(-1)[wake]
            flat[np.setdiff1d(dormant, wake)] = -1.0
            self.bias[name] = self.bias[name] - LR * by_bias[name]
        return loss


@pytest.mark.parametrize("layer", [Masked(), Csr()], ids=lambda layer: layer.name)
def test_equals_algorithm_1(layer):
    network, modules = sparse_net(layer=layer)
    reference = Reference(dense_weights(modules), masks(modules), biases(modules))
    topology = Topology(modules, torch.optim.SGD(network.parameters(), lr=LR), seed=0)
    plugin, n_moves = DeepR(alpha=ALPHA, temperature=T), 0
    topology.start(plugin)
    x, y = examples()
    for step in range(STEPS):
        loss = train_step(network, modules, topology, x, y)
        topology.on_step(plugin, LR, step)
        n_moves += sum(change.n_grown for change in topology.rewire(plugin, Progress(step + 1, STEPS, 10)))
        assert loss == pytest.approx(reference.step(step, x, y), rel=1e-9)
    for name, weight in dense_weights(modules).items():
        np.testing.assert_allclose(weight, reference.weights()[name], rtol=1e-7, atol=1e-13)
        assert (masks(modules)[name] == (reference.theta[name] > 0)).all()
    assert n_moves > 20  # the test would prove little if nothing had gone dormant
