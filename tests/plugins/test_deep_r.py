"""DEEP R against a slow reference written from arXiv 1711.05136, Algorithm 1."""

import math

import numpy as np
import pytest
import torch
from by_hand import connections, flat_of, sites_of
from pydantic import ValidationError
from small_net import biases, dense_weights, examples, gradients, masks, sparse_net, train_step
from sparsefleet_plugins.layers.csr import Csr
from sparsefleet_plugins.layers.masked import Masked
from sparsefleet_plugins.rewiring.deep_r import DeepR
from sparsefleet_plugins.rewiring.static import Static

from sparsefleet import Progress, Rng
from sparsefleet.nn.topology import Topology
from sparsefleet.rng import key_of, uniform_at

NOW = Progress(7, 100, 10)
LR, ALPHA, T, STEPS = 0.3, 0.02, 1e-4, 40


class Reference:
    """theta, sign and dormancy at every site of a dense matrix; only the draws come from the product's generator."""

    def __init__(self, weights, live, bias):
        self.sign, self.theta = {}, {}
        for name, weight in weights.items():
            draw = uniform_at(key_of(0, "weight", name), torch.arange(weight.size)).numpy().reshape(weight.shape)
            own = np.where(2 * draw - 1 < 0, -1.0, 1.0)  # of sites that were never active
            self.sign[name] = np.where(live[name], np.where(weight < 0, -1.0, 1.0), own)
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


def started(plugin, conn):
    conn.state = dict(plugin.initial_state(conn))
    return conn


def test_step_is_the_papers():
    plugin = DeepR(alpha=0.02, temperature=0.003)
    conn = started(plugin, connections([[0.5, -0.4, 0.0, 0.1]]))
    sign, theta, grad, lr = [1, -1, 1], [0.5, 0.4, 0.1], [0.3, -0.2, 0.7], 0.1
    nu = Rng("nu").normal(3).tolist()
    slow = [
        t - lr * (s * g) - lr * 0.02 + math.sqrt(2 * lr * 0.003) * (s * s * n)  # dE/dtheta = s dE/dw
        for s, t, g, n in zip(sign, theta, grad, nu, strict=True)
    ]
    conn.weight -= lr * torch.tensor(grad, dtype=torch.float64)  # what plain SGD does
    plugin.on_step(conn, lr, Rng("nu"))
    assert torch.allclose(conn.state["sign"] * conn.weight, torch.tensor(slow, dtype=torch.float64), rtol=1e-12)


def test_theta_below_zero_goes_dormant():
    plugin = DeepR()
    conn = started(plugin, connections([[0.5, -0.4, 0.2, -0.1, 0.0, 0.0, 0.0, 0.0]]))
    conn.weight = torch.tensor([0.5, 0.01, -0.3, -0.1], dtype=torch.float64)  # signs are + - + -: the 2nd and 3rd crossed zero
    keep, new = plugin.update(conn, NOW, Rng(0), 4)
    assert keep.tolist() == [True, False, False, True]
    assert new.shape == (2, 2)
    assert not flat_of(new, 8) & sites_of(conn, keep)


def test_an_exact_zero_is_dormant():
    plugin = DeepR()
    conn = started(plugin, connections([[0.0, 1.0, 0.0, 0.0]], mask=[[True, True, False, False]]))
    assert plugin.update(conn, NOW, Rng(0), 2).keep.tolist() == [False, True]


def test_dormant_sites_are_equally_likely():
    plugin = DeepR()
    counts = torch.zeros(12)
    for seed in range(600):
        conn = started(plugin, connections([[0.5, -0.4, 0.2] + [0.0] * 9]))
        conn.weight[1] = 0.1  # crossed
        counts[plugin.update(conn, NOW, Rng(seed), 3).new[1]] += 1
    assert counts[[0, 2]].sum() == 0
    dormant = counts[[1, *range(3, 12)]]  # the one that just fell asleep may wake
    assert (dormant / 600 - 0.1).abs().max() < 5 * (0.1 * 0.9 / 600) ** 0.5


def test_grown_connections_start_tiny_with_the_sites_own_sign():
    plugin = DeepR()
    conn = connections(torch.ones(1, 3).tolist()[0:1], mask=[[True, True, True]])
    conn.shape = (1, 2000)
    sites = torch.stack([torch.zeros(1000, dtype=torch.int64), torch.arange(1000, 2000)])
    weight = plugin.grown_weight(conn, sites, Rng(0))
    assert torch.equal(weight.abs(), torch.full((1000,), 1e-12, dtype=torch.float64))
    assert torch.equal(weight, plugin.grown_weight(conn, sites, Rng(99)))  # fixed for ever: the sparse script re-draws it
    assert 400 < int((weight > 0).sum()) < 600
    grown = connections(weight[None], mask=torch.ones(1, 1000, dtype=torch.bool))
    assert torch.equal(plugin.initial_state(grown)["sign"], weight.sign())


def test_a_sign_lasts_while_its_site_is_dormant():
    """Also where the first weights are others than the drawn ones: a ticket's, or a model's own."""
    plugin, sites = DeepR(), torch.stack([torch.zeros(40, dtype=torch.int64), torch.arange(40)])
    conn = connections(Rng("w").normal(40)[None], mask=torch.ones(1, 40, dtype=torch.bool))
    started(plugin, conn)
    assert torch.equal(plugin.grown_weight(conn, sites, Rng(0)).sign(), conn.weight.sign())
    other = connections(torch.ones(1, 1), rng=Rng(1))
    assert not torch.equal(plugin.grown_weight(other, sites, Rng(0)).sign(), conn.weight.sign())


def test_is_due_at_every_step_and_at_the_last():
    assert [step for step in range(5) if DeepR().due(Progress(step, 4, 2))] == [1, 2, 3, 4]


def test_defaults_are_the_authors_script():
    plugin, lr = DeepR(), 0.5
    assert plugin.alpha == 1e-5
    assert math.sqrt(2 * lr * plugin.temperature) == pytest.approx(lr * 1e-5)
    assert DeepR.needs_plain_sgd


@pytest.mark.parametrize("plugin", [DeepR, Static])
def test_parameters_that_a_method_does_not_have_are_refused(plugin):
    for name in ("every", "drop_fraction", "stop"):
        with pytest.raises(ValidationError, match="Extra inputs"):
            plugin(**{name: 1})
    assert "every" not in plugin.model_json_schema()["properties"]


def test_static_never_moves():
    assert not any(Static().due(Progress(step, 100, 10)) for step in range(101))
    assert Static().model_dump() == {}
