"""Grow-then-prune against loops over sites: exact counts, stored weights that compete, and an overshoot that the record tells."""

import json

import numpy as np
import pytest
import torch
from small_net import biases, dense_weights, examples, gradients, masks, sparse_net, train_step
from sparsefleet_plugins.rewiring.grow_then_prune import GrowThenPrune

from sparsefleet import Progress, Rng
from sparsefleet.nn.topology import Topology
from sparsefleet.rng import key_of, uniform_at
from sparsefleet.trial import files
from sparsefleet.trial.run import run_trial

LR, STEPS = 0.2, 30


class Reference:
    """A stored weight at every site."""

    def __init__(self, weights, live, bias):
        self.live, self.bias, self.stored = live, bias, {}
        for name, weight in weights.items():
            draw = 2 * uniform_at(key_of(0, "weight", name), torch.arange(weight.size)).numpy().reshape(weight.shape) - 1
            scale = np.abs(weight[live[name]]).sum() / np.abs(draw[live[name]]).sum()
            self.stored[name] = np.where(live[name], weight, scale * draw)

    def step(self, x, y):
        _, by_weight, by_bias, _ = gradients({name: w * self.live[name] for name, w in self.stored.items()}, self.bias, x, y)
        for name in self.stored:
            self.stored[name] -= LR * by_weight[name] * self.live[name]
            self.bias[name] = self.bias[name] - LR * by_bias[name]

    def rewire(self, step, share):
        peak = {}
        for name, live in self.live.items():
            flat, n = live.reshape(-1), int(live.sum())
            absent = np.flatnonzero(~flat)
            n_join = int(share * len(absent) + 1e-9)
            joined = absent[Rng(0, "rewire", name, step).distinct(n_join, len(absent)).numpy()]
            size = np.abs(self.stored[name].reshape(-1))
            all_of_them = [*np.flatnonzero(flat), *joined]
            flat[:] = False
            flat[sorted(all_of_them, key=lambda site: (-size[site], site))[:n]] = True
            peak[name] = len(all_of_them)
        return peak


@pytest.mark.parametrize("share", [0.1, 0.37, 1.0])
def test_equals_the_slow_reference(share):
    network, modules = sparse_net(density=0.4)
    reference = Reference(dense_weights(modules), masks(modules), biases(modules))
    topology = Topology(modules, torch.optim.SGD(network.parameters(), lr=LR), seed=0)
    plugin, n_grown = GrowThenPrune(every=3, grow_fraction=share), 0
    first = {name: module.nnz for name, module in modules.items()}
    topology.start(plugin)
    x, y = examples()
    for step in range(1, STEPS + 1):
        train_step(network, modules, topology, x, y)
        reference.step(x, y)
        if plugin.due(Progress(step, STEPS, 10)):
            changes = topology.rewire(plugin, Progress(step, STEPS, 10))
            peak = reference.rewire(step, share)
            assert {change.layer: change.n_peak for change in changes} == peak
            n_grown += sum(change.n_grown for change in changes)
        assert {name: module.nnz for name, module in modules.items()} == first
        for name, mask in masks(modules).items():
            assert (mask == reference.live[name]).all(), f"step {step}, layer {name}"
    for name, weight in dense_weights(modules).items():
        np.testing.assert_allclose(weight, reference.stored[name] * reference.live[name], rtol=1e-9, atol=1e-13)
    assert n_grown > 0


def test_a_trial_tells_its_overshoot(digits_request):
    request = digits_request(
        layer={"name": "masked"}, density=0.2, method={"rewirer": {"name": "grow-then-prune", "params": {"every": 5, "grow_fraction": 0.1}}}
    )
    run_trial(request)
    curves = json.loads((request.workdir / files.RECORD).read_text())["curves"]
    overshoot = curves["transient_overshoot"]["values"]
    assert overshoot == pytest.approx([0.1 * 0.8 / 0.2] * len(overshoot), abs=5e-3)


def test_parameters():
    assert GrowThenPrune().model_dump() == {"every": 100, "stop": 1.0, "grow_fraction": 0.1}
