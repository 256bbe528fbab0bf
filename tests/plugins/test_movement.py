"""Movement pruning (arXiv 2005.07683, section 4) against numpy."""

import numpy as np
import pytest
import torch
from small_net import biases, dense_weights, examples, gradients, masks, sparse_net, train_step
from sparsefleet_plugins.pruning.movement import Movement

from sparsefleet import PluginError
from sparsefleet.nn import Sparsifier
from sparsefleet.nn.topology import Topology
from sparsefleet.sparsity.distribute import total_nnz
from sparsefleet.sparsity.vocabulary import Cubic

LR, STEPS = 0.2, 30


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
        _, by_weight, by_bias, _ = gradients({name: w[name] * live[name] for name in w}, bias, x, y)
        for name in w:
            score[name] = score[name] - by_weight[name] * w[name]  # W of the pass that gave the gradient, at every site
            w[name] = w[name] - LR * by_weight[name] * live[name]
            bias[name] = bias[name] - LR * by_bias[name]
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
            np.testing.assert_allclose(modules[name].dense_state["score"].numpy(), score[name], rtol=1e-9, atol=1e-13)
            np.testing.assert_allclose(dense_weights(modules)[name], w[name] * live[name], rtol=1e-9, atol=1e-13)
    assert n_returned > 0
    assert topology.nnz == round(0.4 * topology.n_sites)


def test_global_keeps_what_was_asked_while_connections_move_between_layers():
    """Scores go on at every site, so a layer may get back what another loses; a layer that cannot grow would leave fewer than asked."""
    network, modules = sparse_net(density=1.0)
    topology = Topology(modules, torch.optim.SGD(network.parameters(), lr=LR), seed=0)
    topology.start(Movement())
    x, y = examples()
    n_more = 0
    for step in range(40):
        train_step(network, modules, topology, x, y)
        if step % 3 == 2:
            before = {name: module.nnz for name, module in modules.items()}
            density = 1 - 0.6 * min(1.0, step / 15)
            scores = topology.score(Movement(), step)
            topology.prune(scores, density, distribution="global")
            ranked = sorted(((-s, name, i) for name, score in scores.items() for i, s in enumerate(score.reshape(-1).tolist())))
            want = {(name, i) for _, name, i in ranked[: total_nnz(topology.n_sites, density)]}
            assert {(name, i) for name, module in modules.items() for i in module.flat_sites().tolist()} == want
            n_more += sum(module.nnz > before[name] for name, module in modules.items())
    assert n_more > 0


def test_the_score_of_a_pruned_weight_goes_on():
    """A port that multiplies by the weight after its mask leaves such a score where it is for ever."""
    network, modules = sparse_net(density=1.0)
    topology = Topology(modules, torch.optim.SGD(network.parameters(), lr=LR), seed=0)
    topology.start(Movement())
    x, y = examples()
    train_step(network, modules, topology, x, y)
    topology.prune(topology.score(Movement(), 1), 0.5)
    before = {name: module.dense_state["score"].clone() for name, module in modules.items()}
    stored = {name: module.weight_parameter.detach().clone() for name, module in modules.items()}
    train_step(network, modules, topology, x, y)
    for name, module in modules.items():
        absent = ~module.mask
        assert bool(absent.any())
        moved, g = module.dense_state["score"] - before[name], module.dense_grad()
        torch.testing.assert_close(moved, -g * stored[name])  # also at absent sites
        assert bool((moved[absent] != 0).any())
        masked_port = -g * stored[name] * module.mask
        assert not bool((masked_port[absent] != 0).any())
        assert torch.equal(module.weight_parameter[absent], stored[name][absent])  # W of an absent site gets no gradient


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_the_score_reads_the_weight_before_the_step(make):
    network, modules = sparse_net(density=1.0)
    topology = Topology(modules, make(network.parameters(), lr=0.05), seed=0)
    topology.prepare(Movement())
    topology.start(Movement())  # as a trial does: both, and the score counts once
    x, y = examples()
    w = {name: module.weight_parameter.detach().clone() for name, module in modules.items()}
    by_weight = gradients(dense_weights(modules), biases(modules), x, y)[1]
    train_step(network, modules, topology, x, y)
    for name, module in modules.items():
        np.testing.assert_allclose(module.dense_state["score"].numpy(), -by_weight[name] * w[name].numpy(), rtol=1e-9, atol=1e-15)
        assert not torch.equal(module.weight_parameter, w[name])


def test_weights_that_move_away_from_zero_stay():
    """Figure 1: a small weight that grows outlives a large one that shrinks, where magnitude would keep the other."""
    _, modules = sparse_net(density=1.0)
    module = modules["4"]
    topology = Topology({"4": module}, torch.optim.SGD(module.parameters(), lr=0.01), seed=0)
    topology.start(Movement())
    for _ in range(10):
        topology.watch_absent(True)
        topology.optimizer.zero_grad()
        grows = torch.zeros(4, 6, dtype=torch.float64)
        grows[0], grows[1:] = -1.0, 1.0  # row 0 wants to be larger, the others smaller
        (module.weight * grows * module.weight_parameter.detach().sign()).sum().backward()
        topology.optimizer.step()
    topology.prune(topology.score(Movement(), 10), 0.25)
    assert module.mask[0].all()
    assert int(module.mask.sum()) == 6


def test_pruning_before_the_first_step_is_refused():
    _, modules = sparse_net(density=1.0)
    with pytest.raises(PluginError, match="no step has been made"):
        Topology(modules, None, seed=0).score(Movement(), 0)


def test_a_trial_goes_on_after_the_conversion(digits_request):
    from sparsefleet.trial.record import State
    from sparsefleet.trial.run import run_trial

    schedule = {"kind": "cubic", "begin": 0.1, "end": 0.6, "every": 4}
    method = {"pruner": {"name": "movement"}, "schedule": schedule, "convert_at": 0.7}
    record = run_trial(digits_request(method=method, density=0.2, layer={"name": "csr"}, train={"epochs": 1, "batch_size": 64}))
    assert record.state is State.SUCCEEDED, record.reason
    assert record.counts.nnz_weights == round(0.2 * (64 * 32 + 32 * 24 + 24 * 10))


def test_in_a_training_loop_of_ones_own():
    """The optimizer calls it, whoever calls the optimizer."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 4)).double()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    schedule = Cubic(begin=0.2, end=0.8, every=2)
    sparsifier = Sparsifier(network, optimizer, density=0.25, total_steps=20, pruner="movement", layer="masked", schedule=schedule)
    score = {name: torch.zeros(module.matrix_shape, dtype=torch.float64) for name, module in sparsifier.modules.items()}
    x, y = examples()
    for _ in range(20):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), y).backward()
        for name, module in sparsifier.modules.items():
            score[name] -= module.dense_grad() * module.weight_parameter.detach()
        sparsifier.step()
    for name, module in sparsifier.modules.items():
        torch.testing.assert_close(module.dense_state["score"], score[name])
    assert sparsifier.topology.nnz == 18
