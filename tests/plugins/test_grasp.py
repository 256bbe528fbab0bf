"""GraSP (arXiv 2002.07376, Algorithm 1) against finite differences of a gradient written out by hand."""

import numpy as np
import pytest
import torch
from small_net import INFO, biases, calibration, dense_weights, examples, gradients, masks, sparse_net
from sparsefleet_plugins.pruning.grasp import Grasp

from sparsefleet import PluginError, keep_best
from sparsefleet.nn.topology import Topology
from sparsefleet.trial.calibrate import NetworkCalibration


def in_batches(network, modules, sizes):
    """The core's calibration of 32 examples in batches of these sizes."""
    connections = Topology(modules, None, seed=0).connections("prune", 0)
    parts = zip(*(torch.split(part, sizes) for part in examples(sum(sizes))), strict=True)
    return NetworkCalibration(network, modules, connections, list(parts), INFO)


def slow_scores(modules, temperature):
    """``w * (H g)`` by central differences of the gradient along g."""
    w, live, bias = dense_weights(modules), masks(modules), biases(modules)
    x, y = examples()

    def gradient(shift, along):
        moved = {name: w[name] + shift * along[name] for name in w}
        return {name: g * live[name] for name, g in gradients(moved, bias, x, y, temperature=temperature)[1].items()}

    g = gradient(0.0, {name: np.zeros_like(value) for name, value in w.items()})
    up, down = gradient(1e-5, g), gradient(-1e-5, g)
    return {name: torch.from_numpy((w[name] * (up[name] - down[name]) / 2e-5)[live[name]]) for name in w}


@pytest.mark.parametrize("sizes", [[32], [20, 12]])
def test_equals_the_reference(sizes):
    network, modules = sparse_net(density=0.8)
    scores, slow = Grasp(temperature=2.0).score_all(in_batches(network, modules, sizes)), slow_scores(modules, 2.0)
    for name in slow:
        np.testing.assert_allclose(scores[name].numpy(), slow[name].numpy(), rtol=1e-5, atol=1e-9)
    fast, slow = torch.cat(list(scores.values())), torch.cat(list(slow.values()))
    n = fast.numel() // 2
    assert torch.equal(keep_best(fast, n), keep_best(slow, n))  # the global set


def test_the_highest_of_the_papers_score_goes():
    """The paper removes the highest -w * (H g); ports that keep them, or that keep the largest magnitudes, keep another set."""
    network, modules = sparse_net(density=0.8)
    papers = -torch.cat(list(slow_scores(modules, 2.0).values()))
    n_keep = papers.numel() // 2
    removed = torch.argsort(papers, descending=True)[: papers.numel() - n_keep]
    scores = torch.cat(list(Grasp(temperature=2.0).score_all(calibration(network, modules)).values()))
    keep = keep_best(scores, n_keep)
    assert not keep[removed].any()
    assert not torch.equal(keep, keep_best(-scores, n_keep))
    assert not torch.equal(keep, keep_best(scores.abs(), n_keep))


def test_the_papers_numbers():
    assert Grasp().temperature == 200
    assert Grasp().calibration_examples(10) == 250


def test_leaves_the_network_alone():
    network, modules = sparse_net()
    network.insert(1, torch.nn.BatchNorm1d(7).double())
    before = {key: value.clone() for key, value in network.state_dict().items()}
    Grasp().score_all(calibration(network, modules))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(module.training for module in network.modules())


def test_batch_norms_use_the_batch():
    """As in the authors' code; at initialisation the running statistics would normalise nothing."""
    network, modules = sparse_net()
    network.insert(1, torch.nn.BatchNorm1d(7).double())
    x, _ = examples()
    found = calibration(network, modules).forward({}, x, batch_statistics=True)
    mean, std = (h := modules["0"](x)).mean(0), h.var(0, unbiased=False)
    want = network[2:]((h - mean) / (std + 1e-5).sqrt())
    torch.testing.assert_close(found, want)
    assert not torch.allclose(found, calibration(network, modules).forward({}, x))


def test_refuses_a_task_without_classes():
    network, modules = sparse_net()
    context = calibration(network, modules)
    context.n_classes = 0
    with pytest.raises(PluginError, match="by class"):
        Grasp().score_all(context)


def test_prunes_globally_to_the_count():
    network, modules = sparse_net(density=0.8)
    topology = Topology(modules, None, seed=0)
    topology.prune(Grasp().score_all(calibration(network, modules, topology)), 0.3, distribution="global")
    assert topology.nnz == round(0.3 * topology.n_sites)


def test_a_trial_gives_it_equally_many_of_each_class_mixed(digits_request, monkeypatch):
    """Batches of one class each would give batch norms another network to look at."""
    from sparsefleet.trial.record import State
    from sparsefleet.trial.run import run_trial

    labels, original = [], Grasp.score_all

    def score_all(self, context):
        labels.extend(y for _, y in context.batches)
        return original(self, context)

    monkeypatch.setattr(Grasp, "score_all", score_all)
    method = {"pruner": {"name": "grasp"}, "distribution": "global"}
    record = run_trial(digits_request(method=method, density=0.2, layer={"name": "masked"}, train={"epochs": 0, "batch_size": 64}))
    assert record.state is State.SUCCEEDED, record.reason
    assert torch.bincount(torch.cat(labels)).tolist() == [25] * 10
    assert sorted(map(len, labels)) == [62, 62, 63, 63]
    assert min(part.unique().numel() for part in labels) > 5
