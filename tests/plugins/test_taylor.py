"""First-order Taylor pruning (arXiv 1906.10771, section 3) against a gradient written out by hand."""

import numpy as np
import pytest
from small_net import INFO, biases, dense_weights, examples, gradients, masks, sparse_net
from sparsefleet_plugins.pruning.taylor import Taylor

from sparsefleet.nn.topology import Topology
from sparsefleet.sparsity.vocabulary import Row
from sparsefleet.trial.calibrate import NetworkCalibration

X, Y = examples()
BATCHES = [(X[:11], Y[:11]), (X[11:22], Y[11:22]), (X[22:], Y[22:])]


def in_batches(network, modules):
    return NetworkCalibration(network, modules, Topology(modules, None, seed=0).connections("prune", 0), BATCHES, INFO)


def slow_scores(modules):
    """``(n_out, n_in)`` mean over the batches of (g * w)^2."""
    w, total = dense_weights(modules), dict.fromkeys(modules, 0.0)
    for x, y in BATCHES:
        by_weight = gradients(w, biases(modules), x, y)[1]
        total = {name: total[name] + (by_weight[name] * w[name]) ** 2 / len(BATCHES) for name in w}
    return total


def test_equals_the_reference():
    network, modules = sparse_net(density=0.8)
    scores, slow = Taylor().score_all(in_batches(network, modules)), slow_scores(modules)
    for name in slow:
        np.testing.assert_allclose(scores[name].numpy(), slow[name][masks(modules)[name]], rtol=1e-9, atol=1e-18)


def test_a_unit_scores_the_sum_of_its_squares():
    """The paper scores a set of weights by the sum over its members, each taken by itself."""
    network, modules = sparse_net(density=1.0)
    slow = slow_scores(modules)["2"].sum(1)
    topology = Topology(modules, None, seed=0)
    topology.prune(Taylor().score_all(in_batches(network, modules)), 0.5, pattern=Row())
    assert sorted(np.nonzero(masks(modules)["2"].any(1))[0]) == sorted(np.argsort(-slow, kind="stable")[:3])


def test_it_estimates_what_the_loss_changes_by():
    """On small weights, where the first order is nearly all: the squared change of the loss when one connection is taken away."""
    network, modules = sparse_net(density=1.0)
    for module in modules.values():
        module.write_values(module.values() * 0.05)
    connections = Topology(modules, None, seed=0).connections("prune", 0)
    scores = Taylor().score_all(NetworkCalibration(network, modules, connections, [(X, Y)], INFO))
    w, bias = dense_weights(modules), biases(modules)
    loss, largest = gradients(w, bias, X, Y)[0], max(float(score.max()) for score in scores.values())
    for name in w:
        for site in range(0, w[name].size, 5):
            without = {key: value.copy() for key, value in w.items()}
            without[name].reshape(-1)[site] = 0
            change = (gradients(without, bias, X, Y)[0] - loss) ** 2
            assert float(scores[name][site]) == pytest.approx(change, rel=0.2, abs=0.01 * largest)


def test_a_trial_gives_it_batches_of_the_trainings_size(digits_request, monkeypatch):
    from sparsefleet.trial.record import State
    from sparsefleet.trial.run import run_trial

    sizes, original = [], Taylor.score_all

    def score_all(self, context):
        sizes.extend(len(x) for x, _ in context.batches)
        return original(self, context)

    monkeypatch.setattr(Taylor, "score_all", score_all)
    method = {"pruner": {"name": "taylor", "params": {"examples": 250}}, "schedule": {"kind": "one-shot", "at": 1.0}}
    record = run_trial(digits_request(method=method, density=0.2, layer={"name": "masked"}, train={"epochs": 1, "batch_size": 64}))
    assert record.state is State.SUCCEEDED, record.reason
    assert sizes == [63, 63, 62, 62]
