"""Soft DEEP R against numpy, written from arXiv 1711.05136, Algorithm 2, and the authors' script."""

import math

import numpy as np
import pytest
import torch
from by_hand import connections
from pydantic import ValidationError
from small_net import biases, dense_weights, examples, gradients, masks, sparse_net, train_step
from sparsefleet_plugins.rewiring.soft_deep_r import SoftDeepR

from sparsefleet import Progress, Rng
from sparsefleet.connections import DenseValues
from sparsefleet.nn.topology import Topology
from sparsefleet.rng import key_of, uniform_at

LR, ALPHA, T, STEPS = 0.3, 0.02, 2e-4, 60


class Reference:
    """theta and sign at every site, dormant or not; only the draws come from the product's generator."""

    def __init__(self, weights, live, bias):
        self.theta, self.sign, self.least, self.bias = {}, {}, {}, bias
        for name, weight in weights.items():
            sites = torch.arange(weight.size)
            own = 2 * uniform_at(key_of(0, "weight", name), sites).numpy().reshape(weight.shape) - 1
            self.sign[name] = np.where(live[name], np.where(weight < 0, -1.0, 1.0), np.where(own < 0, -1.0, 1.0))
            p = live[name].mean()
            self.least[name] = -(1 - p) / p * T / ALPHA
            start = self.least[name] * Rng(0, "step", name, 0).spawn("dormant").at(sites).numpy().reshape(weight.shape)
            self.theta[name] = np.where(live[name], np.abs(weight), start)

    def weights(self):
        return {name: self.sign[name] * np.where(theta > 0, theta, 0) for name, theta in self.theta.items()}

    def step(self, number, x, y):
        _, by_weight, by_bias, _ = gradients(self.weights(), self.bias, x, y)
        for name, theta in self.theta.items():
            nu = Rng(0, "step", name, number).normal(theta.size).numpy().reshape(theta.shape)
            for site in np.ndindex(theta.shape):
                step = math.sqrt(2 * LR * T) * nu[site]
                if theta[site] > 0:
                    step -= LR * self.sign[name][site] * by_weight[name][site] + LR * ALPHA
                theta[site] = max(theta[site] + step, self.least[name])
            self.bias[name] = self.bias[name] - LR * by_bias[name]


def test_equals_algorithm_2():
    network, modules = sparse_net(density=0.3)
    reference = Reference(dense_weights(modules), masks(modules), biases(modules))
    topology = Topology(modules, torch.optim.SGD(network.parameters(), lr=LR), seed=0)
    plugin, n_woke, n_slept, counts = SoftDeepR(alpha=ALPHA, temperature=T), 0, 0, set()
    topology.start(plugin)
    x, y = examples()
    for step in range(STEPS):
        train_step(network, modules, topology, x, y)
        topology.on_step(plugin, LR, step)
        changes = topology.rewire(plugin, Progress(step + 1, STEPS, 10))
        n_woke, n_slept = n_woke + sum(c.n_grown for c in changes), n_slept + sum(c.n_dropped for c in changes)
        reference.step(step, x, y)
        counts.add(topology.nnz)
        for name, mask in masks(modules).items():
            assert (mask == (reference.theta[name] > 0)).all(), f"step {step}, layer {name}"
    for name, weight in dense_weights(modules).items():
        np.testing.assert_allclose(weight, reference.weights()[name], rtol=1e-7, atol=1e-12)
    assert min(n_woke, n_slept) > 10  # both ways
    assert len(counts) > 3  # and nothing holds the number


def alone(weight, mask, **params):
    """A layer without a loss, after ``steps`` of the walk."""
    conn = connections(weight, mask)
    conn.dense = DenseValues(torch.zeros(conn.shape, dtype=torch.float64), None, {})
    return conn, SoftDeepR(**params)


def test_a_dormant_parameter_has_no_l1_term_and_stays_above_the_bound():
    conn, plugin = alone([[0.5, 0.0, 0.0, 0.0]], [[True, False, False, False]], alpha=0.5, temperature=1e-9)
    plugin.on_step(conn, 0.1, Rng(0))
    bound = -3 * 1e-9 / 0.5
    assert float(conn.memory["theta_min"]) == pytest.approx(bound)
    theta = conn.dense.state["theta"]
    assert theta[0, 0] == pytest.approx(0.5 - 0.1 * 0.5, abs=1e-4)
    assert bool((theta[0, 1:] >= bound).all())  # the l1 term would have led to -0.05


def test_the_stationary_share_of_active_sites_is_the_density_asked():
    """The authors' rule: without a loss, theta is uniform below zero and exponential above."""
    n, p = 20_000, 0.2
    mask = (torch.arange(n) < p * n).view(1, -1)
    conn, plugin = alone(torch.full((1, n), 1e-3), mask, alpha=1.0, temperature=1e-3)
    conn.weight = Rng("w").uniform(conn.nnz) * 1e-3
    shares = []
    for step in range(600):
        plugin.on_step(conn, 0.01, Rng("walk", step))
        theta, sign = conn.dense.state["theta"].view(-1), conn.dense.state["sign"].view(-1)
        site = torch.nonzero(theta > 0).flatten()
        conn.row, conn.col, conn.weight = torch.zeros_like(site), site, (sign * theta)[site]
        shares.append(site.numel() / n)
    assert abs(sum(shares[300:]) / 300 - p) < 0.04  # a step is not small against the bound


def test_signs_are_those_of_the_first_weights_and_last_for_ever():
    conn, plugin = alone([[-0.5, 0.5, 0.0, 0.0]], [[True, True, False, False]])
    plugin.on_step(conn, 0.1, Rng(0))
    sign = conn.dense.state["sign"].clone()
    assert sign[0, :2].tolist() == [-1.0, 1.0]
    conn.weight = torch.tensor([0.1, -0.1], dtype=torch.float64)  # both crossed zero
    plugin.on_step(conn, 0.1, Rng(1))
    assert torch.equal(conn.dense.state["sign"], sign)
    assert plugin.update(conn, Progress(1, 10, 5), Rng(0), 2).keep.tolist() == [False, False]


def test_defaults_are_the_authors_script():
    plugin, lr = SoftDeepR(), 0.05
    assert plugin.alpha == 1e-5
    assert math.sqrt(2 * lr * plugin.temperature) == pytest.approx(lr * 1e-5)
    assert SoftDeepR.needs_plain_sgd
    assert [step for step in range(5) if plugin.due(Progress(step, 4, 2))] == [1, 2, 3, 4]
    with pytest.raises(ValidationError):
        SoftDeepR(theta_min=0.1)
