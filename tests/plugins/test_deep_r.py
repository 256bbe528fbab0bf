"""DEEP R against a slow reference written from arXiv 1711.05136, Algorithm 1."""

import math

import pytest
import torch
from by_hand import connections, flat_of, sites_of
from pydantic import ValidationError
from sparsefleet_plugins.rewiring.deep_r import DeepR
from sparsefleet_plugins.rewiring.static import Static

from sparsefleet import Progress, Rng

NOW = Progress(7, 100, 10)


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
