"""Throwaway movement pruning (arXiv 2005.07683, Eq. 2-4) in the contract, against numpy.

What it needed: ``revives`` and ``score_sites`` (a removed connection may come back), absent weights that keep their value.
"""

import numpy as np
import torch
from small_net import biases, dense_weights, examples, gradients, masks, sparse_net, train_step

from sparsefleet import Pruner
from sparsefleet.nn.topology import Topology

LR, STEPS = 0.2, 30


class Movement(Pruner):
    """Keeps weights that move away from zero; scores accumulate at every site, kept or not."""

    name = "movement"
    paper = "arXiv 2005.07683, Eq. 2-4"
    needs_dense = True
    revives = True

    def on_step(self, conn, lr, rng):
        score = conn.dense.state.setdefault("score", torch.zeros_like(conn.dense.weight))
        score.sub_(lr * conn.dense.grad * conn.dense.weight)

    def score_sites(self, conn):
        return conn.dense.state["score"]


def test_equals_the_reference():
    network, modules = sparse_net(density=1.0)
    w, live, bias = dense_weights(modules), masks(modules), biases(modules)
    score = {name: np.zeros_like(value) for name, value in w.items()}
    topology = Topology(modules, torch.optim.SGD(network.parameters(), lr=LR), seed=0)
    plugin, n_returned = Movement(), 0
    topology.start(plugin)
    x, y = examples()
    for step in range(STEPS):
        train_step(network, modules, topology, x, y)
        topology.on_step(plugin, LR, step)
        _, by_weight, by_bias, _ = gradients({name: w[name] * live[name] for name in w}, bias, x, y)
        for name in w:
            w[name] = w[name] - LR * by_weight[name] * live[name]
            bias[name] = bias[name] - LR * by_bias[name]
            score[name] = score[name] - LR * by_weight[name] * w[name]
        if step % 3 == 2:
            density = 1 - 0.6 * min(1.0, step / 15)
            n_returned += sum(change.n_grown for change in topology.prune(topology.score(plugin, step), density))
            for name, mask in live.items():
                n_keep = modules[name].nnz
                order = sorted(range(mask.size), key=lambda site, name=name: (-score[name].reshape(-1)[site], site))
                mask.reshape(-1)[:] = False
                mask.reshape(-1)[order[:n_keep]] = True
        for name, mask in masks(modules).items():
            assert (mask == live[name]).all(), f"step {step}, layer {name}"
            np.testing.assert_allclose(dense_weights(modules)[name], w[name] * live[name], rtol=1e-9, atol=1e-13)
    assert n_returned > 0
    assert topology.nnz == round(0.4 * topology.n_sites)
