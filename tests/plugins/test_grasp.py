"""Throwaway GraSP (arXiv 2002.07376, Algorithm 1) in the contract, against finite differences of a hand-written gradient.

What it needed: ``score_all`` over a calibration that is differentiable twice, ``balanced_calibration``, ``calibration_examples``.
"""

import numpy as np
import pytest
import torch
from pydantic import Field
from small_net import biases, calibration, dense_weights, examples, gradients, masks, sparse_net

from sparsefleet import Pruner, keep_best
from sparsefleet.nn.topology import Topology


class Grasp(Pruner):
    """Keeps the gradient flow: connections whose removal lowers it least go first."""

    name = "grasp"
    paper = "arXiv 2002.07376, Algorithm 1"
    needs_calibration = True
    balanced_calibration = True
    temperature: float = Field(200.0, gt=0, description="divides the logits")
    per_class: int = Field(25, ge=1, description="calibration examples of each class")

    def calibration_examples(self, n_classes):
        return self.per_class * n_classes

    def score_all(self, calibration):
        weights = {name: conn.weight.clone().requires_grad_() for name, conn in calibration.layers.items()}
        (x, y), *_ = calibration.batches
        loss = calibration.loss(calibration.forward(weights, x) / self.temperature, y)
        grads = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        flow = sum((grad.detach() * grad).sum() for grad in grads)
        hessian_times_grad = torch.autograd.grad(flow, list(weights.values()))
        # the paper removes the highest -w * Hg; here low goes first
        return {name: (w * hg).detach() for (name, w), hg in zip(weights.items(), hessian_times_grad, strict=True)}


def test_equals_the_reference():
    network, modules = sparse_net(density=0.8)
    scores = Grasp(temperature=2.0).score_all(calibration(network, modules))
    w, live, bias = dense_weights(modules), masks(modules), biases(modules)
    x, y = examples()

    def gradient(shift, along):
        moved = {name: w[name] + shift * along[name] for name in w}
        return {name: g * live[name] for name, g in gradients(moved, bias, x, y, temperature=2.0)[1].items()}

    zero = {name: np.zeros_like(value) for name, value in w.items()}
    g = gradient(0.0, zero)
    eps = 1e-5
    up, down = gradient(eps, g), gradient(-eps, g)
    flat_score, flat_slow = [], []
    for name in w:
        slow = w[name] * (up[name] - down[name]) / (2 * eps)
        np.testing.assert_allclose(scores[name].numpy(), slow[live[name]], rtol=1e-5, atol=1e-9)
        flat_score.append(scores[name])
        flat_slow.append(torch.from_numpy(slow[live[name]]))
    n = sum(part.numel() for part in flat_score) // 2
    assert torch.equal(keep_best(torch.cat(flat_score), n), keep_best(torch.cat(flat_slow), n))  # the global set


def test_leaves_the_network_alone():
    network, modules = sparse_net()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    Grasp().score_all(calibration(network, modules))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_prunes_globally_to_the_count():
    network, modules = sparse_net(density=0.8)
    topology = Topology(modules, None, seed=0)
    topology.prune(Grasp().score_all(calibration(network, modules, topology)), 0.3, distribution="global")
    assert topology.nnz == round(0.3 * topology.n_sites)
    assert Grasp().calibration_examples(10) == 250
    assert topology.nnz / topology.n_sites == pytest.approx(0.3, abs=0.01)
