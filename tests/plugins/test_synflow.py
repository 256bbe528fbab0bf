"""SynFlow (arXiv 2006.05467, Algorithm 1) against products of matrices."""

import numpy as np
import pytest
import torch
from small_net import INFO, biases, calibration, dense_weights, masks, sparse_net
from sparsefleet_plugins.layers.masked import Masked
from sparsefleet_plugins.pruning.synflow import SynFlow
from torch import nn

from sparsefleet import Connections, PluginError, Rng
from sparsefleet.nn.topology import Topology
from sparsefleet.trial.calibrate import NetworkCalibration


def test_equals_the_reference():
    network, modules = sparse_net(density=0.7)
    scores = SynFlow().score_all(calibration(network, modules))
    w = {name: np.abs(value) for name, value in dense_weights(modules).items()}
    b = {name: np.abs(value) for name, value in biases(modules).items()}
    forward, h = {}, np.ones(8)
    for name in w:  # with magnitudes and ones, every ReLU is open
        forward[name] = h
        h = w[name] @ h + b[name]
    up = np.ones(4)
    for name in reversed(w):
        slow = w[name] * up[:, None] * forward[name][None, :]
        np.testing.assert_allclose(scores[name].numpy(), slow[masks(modules)[name]], rtol=1e-12)
        up = up @ w[name]


def in_rounds(network, modules, density, rounds):
    topology = Topology(modules, None, seed=0)
    for i in range(1, rounds + 1):
        scores = SynFlow().score_all(calibration(network, modules, topology))
        topology.prune(scores, density ** (i / rounds), distribution="global")
    return topology


def test_rounds_avoid_collapse():
    network, modules = sparse_net(density=1.0)
    topology = in_rounds(network, modules, 0.05, SynFlow.rounds)
    assert topology.nnz == round(0.05 * topology.n_sites)
    assert min(module.nnz for module in modules.values()) >= 1
    assert bool((calibration(network, modules).forward({}, torch.ones(1, 8).double(), magnitudes=True) > 0).any())
    path = [dense_weights(modules)[name] != 0 for name in modules]
    assert (path[2].astype(int) @ path[1].astype(int) @ path[0].astype(int)).sum() > 0  # an input still reaches an output


def test_a_trial_prunes_in_a_hundred_rounds_on_an_exponential_schedule(digits_request, monkeypatch):
    from sparsefleet.nn import topology
    from sparsefleet.trial.record import State
    from sparsefleet.trial.run import run_trial

    asked, original = [], topology.Topology.prune

    def prune(self, scores, density, **how):
        asked.append(density)
        return original(self, scores, density, **how)

    monkeypatch.setattr(topology.Topology, "prune", prune)
    method = {"pruner": {"name": "synflow"}, "distribution": "global"}
    record = run_trial(digits_request(method=method, density=0.1, layer={"name": "masked"}, train={"epochs": 0}))
    assert record.state is State.SUCCEEDED, record.reason
    np.testing.assert_allclose(asked, [0.1 ** (k / 100) for k in range(1, 101)], rtol=1e-12)


def test_signs_buffers_and_mode_stay_also_when_it_fails():
    network, modules = sparse_net(density=0.7)
    network.insert(1, nn.BatchNorm1d(7).double())
    before = {key: value.clone() for key, value in network.state_dict().items()}

    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("in the forward pass")

    SynFlow().score_all(calibration(network, modules))
    network.append(Fails())
    with pytest.raises(RuntimeError, match="in the forward pass"):
        SynFlow().score_all(calibration(network, modules))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(module.training for module in network.modules())


def deep_net(depth, width, dtype):
    parts, modules = [], {}
    site = torch.arange(width * width)
    for i in range(depth):
        weight = Rng("deep", i).normal(width * width).to(dtype)
        conn = Connections(f"{2 * i}", (width, width), site // width, site % width, weight)
        modules[f"{2 * i}"] = module = Masked().build(nn.Linear(width, width, bias=False, device="meta"), conn, None)
        module.layer_name = f"{2 * i}"
        parts += [module, nn.ReLU()]
    return nn.Sequential(*parts), modules


def test_a_deep_net_in_float32_is_scored_in_float64():
    """The sum of the outputs is about 1e70 here: infinite in float32, where the gradient would be NaN."""
    network, modules = deep_net(50, 32, torch.float32)
    x = torch.ones(1, 32)
    scores = SynFlow().score_all(
        NetworkCalibration(network, modules, Topology(modules, None, seed=0).connections("prune", 0), [(x, None)], INFO)
    )
    plain = x
    for module in modules.values():
        plain = plain @ module.values().view(32, 32).abs().T
    assert bool(plain.isinf().any())  # what the authors' code computes
    for score in scores.values():
        assert score.dtype == torch.float64
        assert bool(score.isfinite().all())
        assert float(score.sum()) == pytest.approx(float(scores["0"].sum()), rel=1e-9)  # the flow through every layer is the same


def test_refuses_token_numbers_and_too_large_a_flow():
    network, modules = deep_net(250, 32, torch.float32)
    connections = Topology(modules, None, seed=0).connections("prune", 0)
    with pytest.raises(PluginError, match="does not fit float64"):
        SynFlow().score_all(NetworkCalibration(network, modules, connections, [(torch.ones(1, 32), None)], INFO))
    with pytest.raises(PluginError, match="int64"):
        SynFlow().score_all(NetworkCalibration(network, modules, connections, [(torch.ones(1, 32).long(), None)], INFO))
