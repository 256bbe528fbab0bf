"""Throwaway Top-KAST (arXiv 2106.03517, section 2) in the contract, against numpy.

What it needed: a rewirer with ``revives``: absent weights keep their value, are trained inside B, and return with it.
"""

import numpy as np
import torch
from pydantic import Field
from small_net import biases, dense_weights, examples, gradients, masks, sparse_net, train_step

from sparsefleet import Progress, Rewirer, Update, keep_best
from sparsefleet.nn.topology import Topology

LR, STEPS = 0.2, 30


class TopKast(Rewirer):
    """Forward with the largest weights (A); a larger set (B) gets gradients and decay."""

    name = "top-kast"
    paper = "arXiv 2106.03517, section 2"
    needs_dense = revives = needs_plain_sgd = True
    stop: float = Field(1.0, gt=0, le=1, description="share of the training after which the topology stays")
    more: float = Field(0.3, gt=0, lt=1, description="share of all sites in B beyond A")
    decay: float = Field(1e-3, ge=0, description="of weights in A; those in B beyond A decay by this over the density")

    def on_step(self, conn, lr, rng):
        weight = conn.dense.weight.view(-1)
        beyond = keep_best(weight.abs(), conn.nnz + int(self.more * conn.n_sites))
        beyond[conn.flat] = False
        step = conn.dense.grad.reshape(-1)[beyond] + self.decay / conn.density * weight[beyond]
        conn.weight.mul_(1 - lr * self.decay)
        weight[beyond] -= lr * step

    def update(self, conn, progress, rng, n_target):
        chosen = keep_best(conn.dense.weight.abs().reshape(-1), n_target)
        keep = chosen[conn.flat]
        chosen[conn.flat] = False
        new = torch.nonzero(chosen).flatten()
        return Update(keep, torch.stack([new // conn.n_in, new % conn.n_in]))

    def grown_weight(self, conn, sites, rng):
        return conn.dense.weight[sites[0], sites[1]]


def best(values, k):
    flat = np.abs(values).reshape(-1)
    mask = np.zeros(flat.size, dtype=bool)
    mask[sorted(range(flat.size), key=lambda site: (-flat[site], site))[:k]] = True
    return mask.reshape(values.shape)


def test_equals_the_reference():
    network, modules = sparse_net(density=0.4)
    plugin, n_returned = TopKast(every=5), 0
    topology = Topology(modules, torch.optim.SGD(network.parameters(), lr=LR), seed=0)
    topology.start(plugin)
    w, live, bias = dense_weights(modules), masks(modules), biases(modules)
    x, y = examples()
    for step in range(1, STEPS + 1):
        train_step(network, modules, topology, x, y)
        topology.on_step(plugin, LR, step - 1)
        _, by_weight, by_bias, _ = gradients({name: w[name] * live[name] for name in w}, bias, x, y)
        for name in w:
            a, n = live[name], int(live[name].sum())
            w[name] = w[name] - LR * by_weight[name] * a  # the optimizer's step, then B is chosen
            beyond = best(w[name], n + int(0.3 * a.size)) & ~a
            w[name] = w[name] - LR * (by_weight[name] + 1e-3 * a.size / n * w[name]) * beyond - LR * 1e-3 * w[name] * a
            bias[name] = bias[name] - LR * by_bias[name]
        if plugin.due(Progress(step, STEPS, 5)):
            n_returned += sum(change.n_grown for change in topology.rewire(plugin, Progress(step, STEPS, 5)))
            live = {name: best(w[name], int(live[name].sum())) for name in w}
        for name, mask in masks(modules).items():
            assert (mask == live[name]).all(), f"step {step}, layer {name}"
            np.testing.assert_allclose(dense_weights(modules)[name], w[name] * live[name], rtol=1e-9, atol=1e-13)
    assert n_returned > 0
