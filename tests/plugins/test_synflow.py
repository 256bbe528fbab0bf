"""Throwaway SynFlow (arXiv 2006.05467, Algorithm 1) in the contract, against products of matrices.

What it needed: ``rounds``, ``magnitudes`` (biases enter by their magnitude too), computing in float64 by giving float64 inputs.
"""

import numpy as np
import torch
from small_net import biases, calibration, dense_weights, masks, sparse_net

from sparsefleet import Pruner
from sparsefleet.nn.topology import Topology


class SynFlow(Pruner):
    """Synaptic saliency of a data-free objective, applied in many small rounds so that no layer collapses."""

    name = "synflow"
    paper = "arXiv 2006.05467, Algorithm 1"
    needs_calibration = True
    rounds = 100

    def score_all(self, calibration):
        weights = {name: conn.weight.double().abs().requires_grad_() for name, conn in calibration.layers.items()}
        x = torch.ones_like(calibration.batches[0][0][:1], dtype=torch.float64)
        total = calibration.forward(weights, x, magnitudes=True).sum()
        grads = torch.autograd.grad(total, list(weights.values()))
        return {name: (w * g).detach() for (name, w), g in zip(weights.items(), grads, strict=True)}


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


def test_rounds_avoid_collapse():
    network, modules = sparse_net(density=1.0)
    topology = Topology(modules, None, seed=0)
    for i in range(1, SynFlow.rounds + 1):
        scores = SynFlow().score_all(calibration(network, modules, topology))
        topology.prune(scores, 0.05 ** (i / SynFlow.rounds), distribution="global")
    assert topology.nnz == round(0.05 * topology.n_sites)
    assert min(module.nnz for module in modules.values()) >= 1
