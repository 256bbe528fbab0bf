"""Top-KAST against a slow reference written from arXiv 2106.03517, section 2: dense weights, the sets A and B, and their decay."""

import numpy as np
import pytest
import torch
from small_net import biases, dense_weights, examples, gradients, masks, sparse_net, train_step
from sparsefleet_plugins.connectivity.random import RandomConnectivity
from sparsefleet_plugins.layers.masked import Masked
from sparsefleet_plugins.rewiring.top_kast import TopKast
from torch import nn

from sparsefleet import Connections, DenseValues, Progress, Rng, UserError
from sparsefleet.nn import Sparsifier
from sparsefleet.nn.materialise import draw_connections, materialise
from sparsefleet.nn.topology import Topology
from sparsefleet.rng import key_of, uniform_at

LR, STEPS, EVERY, MORE, DECAY = 0.2, 33, 5, 0.3, 0.05


def top(values, k, among):
    """The k of ``among`` (bool) with the largest magnitude, ties by position."""
    flat, mask = np.abs(values).reshape(-1), np.zeros(values.size, dtype=bool)
    sites = [site for site in range(values.size) if among.reshape(-1)[site]]
    mask[sorted(sites, key=lambda site: (-flat[site], site))[:k]] = True
    return mask.reshape(values.shape)


def draws(name, shape):
    """What the initial weights are drawn from."""
    return (2 * uniform_at(key_of(0, "weight", name), torch.arange(shape[0] * shape[1])) - 1).numpy().reshape(shape)


def test_a_training_equals_the_reference():
    network, modules = sparse_net(density=0.4)
    plugin, n_returned = TopKast(every=EVERY, more=MORE, decay=DECAY), 0
    topology = Topology(modules, torch.optim.SGD(network.parameters(), lr=LR), seed=0)
    topology.prepare(plugin)
    topology.start(plugin)
    w, live, bias, beyond = dense_weights(modules), masks(modules), biases(modules), {}
    for name, mask in live.items():  # absent weights are drawn as the live ones, at their scale
        draw = draws(name, mask.shape)
        w[name] = np.where(mask, w[name], draw * np.abs(w[name][mask]).sum() / np.abs(draw[mask]).sum())
    x, y = examples()
    for step in range(1, STEPS + 1):
        train_step(network, modules, topology, x, y)
        topology.on_step(plugin, LR, step - 1)
        _, by_weight, by_bias, _ = gradients({name: w[name] * live[name] for name in w}, bias, x, y)
        for name, a in live.items():
            density = a.sum() / a.size
            if step in (1, 2) or (step - 1) % EVERY == 0:  # the weights are those that A was chosen from
                beyond[name] = top(w[name], int(MORE * a.size), ~a)
            b = beyond[name]
            w[name] = w[name] - LR * ((by_weight[name] + DECAY * w[name]) * a + (by_weight[name] + DECAY / density * w[name]) * b)
            bias[name] = bias[name] - LR * by_bias[name]
        if plugin.due(Progress(step, STEPS, EVERY)):
            n_returned += sum(change.n_grown for change in topology.rewire(plugin, Progress(step, STEPS, EVERY)))
            live = {name: top(w[name], int(live[name].sum()), np.ones_like(live[name])) for name in w}
        for name, mask in masks(modules).items():
            assert (mask == live[name]).all(), f"step {step}, layer {name}"
            stored = modules[name].weight_parameter.detach().numpy()
            np.testing.assert_allclose(stored, w[name], rtol=1e-9, atol=1e-13, err_msg=f"step {step}, layer {name}")
    assert n_returned > 0


def test_clock():
    due = [step for step in range(1001) if TopKast(every=250).due(Progress(step, 1000, 50))]
    assert due == [1, 250, 500, 750]
    assert [step for step in range(1001) if TopKast(every=250, stop=0.5).due(Progress(step, 1000, 50))] == [1, 250]


def small_layer(every=100, more=0.25):
    """One layer after its first step, and the method."""
    network, modules = sparse_net(density=0.25)
    plugin = TopKast(every=every, more=more)
    topology = Topology(modules, torch.optim.SGD(network.parameters(), lr=LR), seed=0)
    topology.start(plugin)
    return network, modules, topology, plugin


def test_outside_of_b_nothing_learns_and_a_is_inside_of_b():
    network, modules, topology, plugin = small_layer()
    for step in range(12):
        before = {name: module.weight_parameter.detach().clone().view(-1) for name, module in modules.items()}
        train_step(network, modules, topology, *examples())
        topology.on_step(plugin, LR, step)
        for name, module in modules.items():
            live, beyond = module.mask.view(-1), module.dense_state["beyond"].view(-1)
            assert not (live & beyond).any()
            assert int(beyond.sum()) == int(0.25 * live.numel())
            changed = module.weight_parameter.detach().view(-1) != before[name]
            if step:  # in the first step all absent weights are drawn
                assert not (changed & ~(live | beyond)).any()
                assert (changed & beyond).any()
        if plugin.due(Progress(step + 1, 1000, 10)):
            topology.rewire(plugin, Progress(step + 1, 1000, 10))


def test_absent_weights_start_as_in_the_dense_layer():
    with torch.device("meta"):
        network, dense = nn.Sequential(nn.Linear(40, 30)), nn.Sequential(nn.Linear(40, 30))
    conn = draw_connections("0", (30, 40), 200, RandomConnectivity(), 7, torch.device("cpu"))
    modules = materialise(network, {"0": (Masked(), conn)}, seed=7, dtype=torch.float64)
    full = materialise(
        dense, {"0": (Masked(), draw_connections("0", (30, 40), 1200, None, 7, torch.device("cpu")))}, seed=7, dtype=torch.float64
    )
    topology, plugin = Topology(modules, torch.optim.SGD(network.parameters(), lr=LR), seed=7), TopKast(decay=0.0)
    topology.start(plugin)
    x = Rng("x").normal(16 * 40).view(16, 40)
    topology.watch_absent(True)
    network(x).square().mean().backward()
    topology.optimizer.step()
    gradient = modules["0"].connections().dense.grad.clone()
    topology.on_step(plugin, LR, 0)
    moved = modules["0"].mask | modules["0"].dense_state["beyond"]
    want = full["0"].weight_parameter.detach() - LR * gradient * moved
    torch.testing.assert_close(modules["0"].weight_parameter.detach(), want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("nnz", [0, 1, 12])
def test_empty_and_full_layers(nnz):
    flat = Rng("sites").distinct(nnz, 12)
    weight = torch.arange(1.0, nnz + 1, dtype=torch.float64)
    stored = torch.zeros(3, 4, dtype=torch.float64)
    stored.view(-1)[flat] = weight
    conn = Connections(
        "0", (3, 4), flat // 4, flat % 4, weight, grad=torch.ones_like(weight), dense=DenseValues(stored, torch.ones_like(stored), {})
    )
    plugin = TopKast(more=0.5)
    plugin.on_step(conn, 0.1, Rng(0))
    assert int(conn.dense.state["beyond"].sum()) == min(6, 12 - nnz)
    keep, new = plugin.update(conn, Progress(1, 10, 5), Rng(0), nnz)
    assert int(keep.sum()) + new.shape[1] == nnz


def test_needs_plain_sgd_and_dense_storage():
    def sparsifier(momentum=0.0, layer="masked"):
        net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=momentum)
        return Sparsifier(net, optimizer, density=0.5, total_steps=10, rewirer="top-kast", layer=layer)

    with pytest.raises(UserError, match="without momentum"):
        sparsifier(momentum=0.9)
    with pytest.raises(UserError, match="absent sites"):
        sparsifier(layer="csr")
    sparsifier()


@pytest.mark.slow
def test_more_than_2_to_the_24_sites():
    n_out, n_in = 4097, 4096
    stored = Rng("big").at(torch.arange(n_out * n_in)).float().view(n_out, n_in)
    flat = Rng("sites").distinct(1000, n_out * n_in)
    conn = Connections("0", (n_out, n_in), flat // n_in, flat % n_in, stored.view(-1)[flat], dense=DenseValues(stored, stored, {}))
    keep, new = TopKast().update(conn, Progress(1, 10, 5), Rng(0), 1000)
    assert int(keep.sum()) + new.shape[1] == 1000
    chosen = stored[new[0], new[1]]
    assert float(chosen.min()) >= float(torch.sort(stored.view(-1), descending=True).values[999])
