"""Throwaway SRigL (arXiv 2305.02299, section 3.1) in the contract, against numpy.

What it needed: ``best_absent_per_row``, ``is_last`` (the output layer loses no neuron), ``varies_nnz`` (a whole fan-in rounds nnz down).
"""

import numpy as np
import torch
from pydantic import Field
from small_net import biases, dense_weights, examples, gradients, masks, sparse_net, train_step

from sparsefleet import Progress, Rewirer, Update, keep_best, keep_best_per_row
from sparsefleet.nn.topology import Topology

LR, STEPS, EVERY = 0.2, 24, 4


class SRigL(Rewirer):
    """RigL at constant fan-in; a neuron with too few salient connections is ablated."""

    name = "srigl"
    paper = "arXiv 2305.02299, section 3.1"
    needs_absent_grad = replaces_step = keeps_regrown = varies_nnz = True
    gamma: float = Field(0.3, ge=0, le=1, description="share of the fan-in that must be salient")

    def update(self, conn, progress, rng, n_target):
        n_drop = self.drop_count(conn, progress)
        large = keep_best(conn.weight.abs(), conn.nnz - n_drop)
        salient = conn.per_row(large.long()) + torch.bincount(conn.best_absent(n_drop)[0], minlength=conn.n_out)
        fan_in = conn.per_row().max()
        alive = torch.ones_like(salient, dtype=torch.bool) if conn.is_last else salient >= (self.gamma * fan_in).clamp(min=1)
        new_fan_in = min(conn.nnz // int(alive.sum()), conn.n_in)
        keep = large & alive[conn.row]
        kept_score = torch.where(keep, conn.weight.abs(), -1.0)
        keep &= keep_best_per_row(kept_score, conn.row, torch.full((conn.n_out,), new_fan_in))  # the largest, not any
        kept = conn.select(keep)
        return Update(keep, kept.best_absent_per_row(torch.where(alive, new_fan_in - kept.per_row(), 0)))


def update_slowly(w, live, g, f, gamma, last):
    """One layer: the new mask; weights of sites that are in neither or in both masks do not change."""
    n_out, n_in = w.shape
    nnz = int(live.sum())
    n_drop = int(f * nnz + 1e-9)
    actives = sorted((-abs(w[i, j]), i * n_in + j) for i in range(n_out) for j in range(n_in) if live[i, j])
    large = {site for _, site in actives[: nnz - n_drop]}
    absents = sorted((-abs(g[i, j]), i * n_in + j) for i in range(n_out) for j in range(n_in) if not live[i, j])
    salient = large | {site for _, site in absents[:n_drop]}
    fan_in = max(int(live[i].sum()) for i in range(n_out))
    alive = [i for i in range(n_out) if last or sum(site // n_in == i for site in salient) >= max(1, gamma * fan_in)]
    k = min(nnz // len(alive), n_in)
    new = np.zeros_like(live)
    for i in alive:
        mine = sorted((site for site in large if site // n_in == i), key=lambda site: (-abs(w[i, site % n_in]), site))[:k]
        others = [i * n_in + j for j in range(n_in) if i * n_in + j not in mine]
        others.sort(key=lambda site: (-abs(g[i, site % n_in]), site))
        for site in mine + others[: k - len(mine)]:
            new[i, site % n_in] = True
    return new


def constant_fan_in(shape):
    n_out, n_in = shape
    return torch.arange(n_out).repeat_interleave(3), (torch.arange(3).repeat(n_out) * 2 + torch.arange(n_out).repeat_interleave(3)) % n_in


def sorted_sites(shape):
    row, col = constant_fan_in(shape)
    flat = torch.sort(row * shape[1] + col).values
    return flat // shape[1], flat % shape[1]


def test_equals_the_reference():
    network, modules = sparse_net(sites=sorted_sites)
    w, live, bias = dense_weights(modules), masks(modules), biases(modules)
    topology = Topology(modules, torch.optim.SGD(network.parameters(), lr=LR), seed=0)
    plugin, n_ablated = SRigL(every=EVERY, gamma=0.6, stop=1.0), 0
    topology.start(plugin)
    x, y = examples()
    for step in range(STEPS):
        progress = Progress(step, STEPS, EVERY)
        _, by_weight, by_bias, _ = gradients(w, bias, x, y)
        if plugin.due(progress):  # replaces the optimizer's step
            topology.watch_absent(True)
            torch.nn.functional.cross_entropy(network(x), y).backward()
            topology.rewire(plugin, progress)
            topology.optimizer.zero_grad()
            f = 0.3 / 2 * (1 + np.cos(np.pi * step / STEPS))
            for name in w:
                live[name] = update_slowly(w[name], live[name], by_weight[name], f, 0.6, name == list(w)[-1])
                w[name] = w[name] * live[name]
        else:
            train_step(network, modules, topology, x, y)
            for name in w:
                w[name] = (w[name] - LR * by_weight[name]) * live[name]
                bias[name] = bias[name] - LR * by_bias[name]
        for name, mask in masks(modules).items():
            assert (mask == live[name]).all(), f"step {step}, layer {name}"
            fan_in = set(mask.sum(1).tolist())
            assert len(fan_in - {0}) == 1  # constant among living neurons
            n_ablated += 0 in fan_in
            np.testing.assert_allclose(dense_weights(modules)[name], w[name], rtol=1e-9, atol=1e-13)
    assert n_ablated > 0
    assert 0 not in masks(modules)["4"].sum(1)  # the output layer keeps its neurons
