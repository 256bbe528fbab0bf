"""SNIP (arXiv 1810.02340, Algorithm 1) against a gradient written out by hand."""

import numpy as np
import pytest
import torch
from small_net import INFO, biases, calibration, dense_weights, examples, gradients, masks, sparse_net
from sparsefleet_plugins.pruning.snip import Snip

from sparsefleet import keep_best
from sparsefleet.nn.topology import Topology
from sparsefleet.trial.calibrate import NetworkCalibration


def slow_scores(modules, x, y):
    by_weight, w = gradients(dense_weights(modules), biases(modules), x, y)[1], dense_weights(modules)
    return {name: np.abs(by_weight[name] * w[name])[masks(modules)[name]] for name in w}


def test_equals_the_reference():
    network, modules = sparse_net(density=0.8)
    x, y = examples()
    scores, slow = Snip().score_all(calibration(network, modules)), slow_scores(modules, x, y)
    for name in slow:
        np.testing.assert_allclose(scores[name].numpy() / len(x), slow[name], rtol=1e-9, atol=1e-15)


def test_the_gradient_is_summed_before_its_magnitude_is_taken():
    """Magnitudes of each batch's gradient, summed, would keep another set."""
    network, modules = sparse_net(density=0.8)
    x, y = examples()
    connections = Topology(modules, None, seed=0).connections("prune", 0)
    batches = [(x[:3], y[:3]), (x[3:20], y[3:20]), (x[20:], y[20:])]
    scores = Snip().score_all(NetworkCalibration(network, modules, connections, batches, INFO))
    whole = slow_scores(modules, x, y)
    apart = {name: sum(len(part) * slow_scores(modules, part, label)[name] for part, label in batches) for name in whole}
    for name in whole:
        np.testing.assert_allclose(scores[name].numpy() / len(x), whole[name], rtol=1e-9, atol=1e-15)
    fast, wrong = torch.cat(list(scores.values())), torch.cat([torch.from_numpy(value) for value in apart.values()])
    assert not torch.equal(keep_best(fast, 20), keep_best(wrong, 20))


def test_global_is_not_layer_wise():
    """google-research/rigl keeps the same share of every layer; the paper ranks all connections together."""
    network, modules = sparse_net(density=1.0)
    topology = Topology(modules, None, seed=0)
    scores = Snip().score_all(calibration(network, modules, topology))
    ranked = torch.cat(list(scores.values()))
    keep = torch.split(keep_best(ranked, round(0.2 * ranked.numel())), [module.nnz for module in modules.values()])
    topology.prune(scores, 0.2, distribution="global")
    assert topology.nnz == round(0.2 * topology.n_sites)
    for module, part in zip(modules.values(), keep, strict=True):
        assert torch.equal(module.flat_sites(), torch.nonzero(part).flatten())
    shares = [module.nnz / module.mask.numel() for module in modules.values()]
    assert max(shares) - min(shares) > 0.05


def test_leaves_gradients_and_buffers_as_they_were():
    network, modules = sparse_net(density=0.8)
    network.insert(1, torch.nn.BatchNorm1d(7).double())
    before = {key: value.clone() for key, value in network.state_dict().items()}
    Snip().score_all(calibration(network, modules))
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("n", [1, 300])
def test_a_trial_gives_it_the_examples_it_asks_for(digits_request, monkeypatch, n):
    from sparsefleet.trial.record import State
    from sparsefleet.trial.run import run_trial

    seen, original = [], Snip.score_all

    def score_all(self, context):
        seen.extend(x for x, _ in context.batches)
        return original(self, context)

    monkeypatch.setattr(Snip, "score_all", score_all)
    method = {"pruner": {"name": "snip", "params": {"examples": n}}, "distribution": "global"}
    record = run_trial(digits_request(method=method, density=0.2, layer={"name": "masked"}, train={"epochs": 0, "batch_size": 64}))
    assert record.state is State.SUCCEEDED, record.reason
    assert sum(map(len, seen)) == n
    assert max(map(len, seen)) <= 64
    assert torch.unique(torch.cat(seen), dim=0).shape[0] == n  # different examples
