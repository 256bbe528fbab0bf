"""SRigL against a slow reference written from arXiv 2305.02299, section 3.1; excess kept weights are cut by magnitude, which is ours."""

import time

import numpy as np
import pytest
import torch
from by_hand import connections, flat_of, sites_of
from hypothesis import given, settings, strategies as st
from small_net import biases, dense_weights, examples, gradients, masks, sparse_net, train_step
from sparsefleet_plugins.connectivity.fixed_fan_in import FixedFanIn as ConstantFanIn
from sparsefleet_plugins.layers.csr import Csr
from sparsefleet_plugins.layers.fixed_fan_in import FixedFanIn
from sparsefleet_plugins.layers.masked import Masked
from sparsefleet_plugins.rewiring.srigl import SRigL

from sparsefleet import Connections, Progress, Rng, UserError
from sparsefleet.nn import Sparsifier
from sparsefleet.nn.topology import Topology

LR, STEPS, EVERY = 0.2, 24, 4


def update_slowly(w, live, g, f, gamma, last, asked):
    """One layer: the new mask. ``w`` and ``g`` are ``(n_out, n_in)``, ``live`` the mask now."""
    n_out, n_in = w.shape
    nnz = int(live.sum())
    n_drop = int(f * nnz + 1e-9)
    actives = sorted((-abs(w[i, j]), i * n_in + j) for i in range(n_out) for j in range(n_in) if live[i, j])
    large = {site for _, site in actives[: nnz - n_drop]}
    absents = sorted((-abs(g[i, j]), i * n_in + j) for i in range(n_out) for j in range(n_in) if not live[i, j])
    ablates = gamma and not last
    salient = large | {site for _, site in absents[:n_drop]} if ablates else large
    of_row = [sum(site // n_in == i for site in salient) for i in range(n_out)]
    alive = sorted(range(n_out), key=lambda i: (-of_row[i], i))[:asked]  # no unit is left without a connection
    if ablates:
        k = nnz / max(1, sum(live[i].any() for i in range(n_out)))
        alive = [i for i in alive if of_row[i] >= min(max(1.0, gamma * k), max(of_row))]  # of all too weak ones the best stay
        strongest = sorted(range(n_out), key=lambda i: (-of_row[i], i))[: -(-asked // n_in)]  # fewer could not hold what is asked
        alive = sorted({*alive, *strongest})
    new, k = np.zeros_like(live), asked // max(1, len(alive))
    for i in alive:
        mine = sorted((site for site in large if site // n_in == i), key=lambda site: (-abs(w[i, site % n_in]), site))[:k]
        others = [i * n_in + j for j in range(n_in) if i * n_in + j not in mine]
        others.sort(key=lambda site: (-abs(g[i, site % n_in]), site))
        for site in mine + others[: k - len(mine)]:
            new[i, site % n_in] = True
    return new


def layer(w, live, g, **more):
    """Connections that rank absent sites by ``g``, in rows too."""
    conn, dense = connections(w, live, grad=g, **more), torch.as_tensor(g)

    def best_per_row(present, counts):
        there = Connections("layer", conn.shape, present // conn.n_in, present % conn.n_in, present.new_empty(0))
        return there.best_absent_per_row(counts, dense)

    conn.best_absent_per_row_by_gradient = best_per_row
    return conn


def test_a_worked_example():
    """Six connections of three units, two each; K = 2. The last unit has no salient one: its two go to the others, fan-in 3."""
    w = np.array([[0.9, 0.8, 0, 0], [0.7, 0.6, 0, 0], [0.1, 0.2, 0, 0]])
    g = np.array([[0, 0, 0.1, 0.9], [0, 0, 0.8, 0.2], [9.0, 9.0, 0, 0.3]])
    conn = layer(w, w != 0, g)
    keep, new = SRigL(drop_fraction=1 / 3, gamma=0.5).update(conn, Progress(0, 100, 10), Rng(0), 6)
    assert conn.weight[keep].tolist() == [0.9, 0.8, 0.7, 0.6]
    assert new.tolist() == [[0, 1], [3, 2]]


def test_excess_is_cut_by_magnitude():
    """A unit that kept three where the fan-in is two loses its smallest; sorting a mask of truth values would lose any."""
    w = np.array([[0.5, 0.9, 0.4, 0.8], [0.1, 0.7, 0, 0]])
    conn = layer(w, w != 0, np.ones((2, 4)))
    keep, new = SRigL(drop_fraction=1 / 3, gamma=0.3).update(conn, Progress(0, 100, 10), Rng(0), 4)
    assert conn.weight[keep].tolist() == [0.9, 0.8, 0.7]
    assert new.tolist() == [[1], [0]]


@given(
    st.integers(0, 10_000),
    st.integers(0, 48),
    st.integers(1, 749),
    st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]),
    st.booleans(),
    st.booleans(),
    st.integers(-5, 5),
)
@settings(max_examples=150, deadline=None)
def test_equals_the_slow_reference(seed, nnz, step, gamma, last, tied, beyond):
    draw = Rng(seed)
    live = np.zeros(48, dtype=bool)
    live[draw.distinct(nnz, 48).numpy()] = True
    live = live.reshape(6, 8)
    w, g = draw.normal(48).view(6, 8), draw.normal(48).view(6, 8)
    if tied:
        w, g = w.sign(), g.round()
    asked = min(48, max(0, nnz + beyond)) if nnz else 0
    conn = layer(w, live, g, is_last=last)
    keep, new = SRigL(gamma=gamma).update(conn, Progress(step, 1000, 50), Rng(0), asked)
    want = update_slowly(w.numpy(), live, g.numpy(), 0.15 * (1 + np.cos(np.pi * step / 750)), gamma, last, asked)
    got = sites_of(conn, keep) | flat_of(new, 8)
    assert got == set(np.flatnonzero(want).tolist())
    assert len(got) == int(keep.sum()) + new.shape[1] <= asked


def test_no_more_units_go_than_the_others_can_take_connections_of():
    """Eight connections of units with four inputs, of which one has as many salient as the mean: alone it would hold half of what was asked."""
    w = np.array([[0.9, 0.8, 0.7, 0.6], [0.1, 0, 0, 0], [0.2, 0, 0, 0], [0.3, 0, 0, 0], [0.4, 0, 0, 0]])
    conn = layer(w, w != 0, np.zeros((5, 4)))
    keep, new = SRigL(drop_fraction=0.1, gamma=1.0).update(conn, Progress(0, 100, 10), Rng(0), 8)  # K = 0
    assert torch.cat([conn.row[keep], new[0]]).bincount().tolist() == [4, 4]


def test_a_weight_of_zero_is_a_connection():
    """A row that sums to zero is no ablated one, and a new connection weighs zero until its first step."""
    w = np.array([[0.5, -0.5, 0, 0], [0.0, 0.0, 0, 0], [0.3, 0.4, 0, 0]])
    live = np.array([[1, 1, 0, 0]] * 3, dtype=bool)
    conn = layer(w, live, np.zeros((3, 4)))
    keep, new = SRigL(gamma=0.3).update(conn, Progress(749, 1000, 50), Rng(0), 6)  # K = 0: every weight is salient
    assert bool(keep.all())
    assert not new.numel()


def sorted_sites(shape):
    """Three inputs of every unit, spread."""
    n_out, n_in = shape
    row = torch.arange(n_out).repeat_interleave(3)
    flat = torch.sort(row * n_in + (torch.arange(3).repeat(n_out) * 2 + row) % n_in).values
    return flat // n_in, flat % n_in


@pytest.mark.parametrize(
    ("storage", "gamma"), [(Masked(), 0.6), (Csr(), 0.6), (FixedFanIn(), 0.0)], ids=lambda value: getattr(value, "name", value)
)
def test_a_training_equals_the_reference(storage, gamma):
    network, modules = sparse_net(layer=storage, sites=sorted_sites)
    w, live, bias = dense_weights(modules), masks(modules), biases(modules)
    asked = {name: int(mask.sum()) for name, mask in live.items()}
    topology = Topology(modules, torch.optim.SGD(network.parameters(), lr=LR), seed=0)
    plugin, n_ablated, n_moved = SRigL(every=EVERY, gamma=gamma, stop=1.0), 0, 0
    topology.start(plugin)
    x, y = examples()
    for step in range(STEPS):
        progress = Progress(step, STEPS, EVERY)
        _, by_weight, by_bias, _ = gradients(w, bias, x, y)
        if plugin.due(progress):  # replaces the optimizer's step
            topology.watch_absent(True)
            torch.nn.functional.cross_entropy(network(x), y).backward()
            n_moved += sum(change.n_grown for change in topology.rewire(plugin, progress))
            topology.optimizer.zero_grad()
            f = 0.3 / 2 * (1 + np.cos(np.pi * step / STEPS))
            for name in w:
                live[name] = update_slowly(w[name], live[name], by_weight[name], f, gamma, name == list(w)[-1], asked[name])
                w[name] = w[name] * live[name]
        else:
            train_step(network, modules, topology, x, y)
            for name in w:
                w[name] = (w[name] - LR * by_weight[name]) * live[name]
                bias[name] = bias[name] - LR * by_bias[name]
        for name, mask in masks(modules).items():
            assert (mask == live[name]).all(), f"step {step}, layer {name}"
            fan_in = set(mask.sum(1).tolist())
            assert len(fan_in - {0}) == 1  # constant among living units
            assert asked[name] - mask.shape[0] < mask.sum() <= asked[name]  # a whole fan-in, and the rounding never adds up
            n_ablated += 0 in fan_in
            np.testing.assert_allclose(dense_weights(modules)[name], w[name], rtol=1e-9, atol=1e-13)
    assert n_moved > 0
    assert bool(n_ablated) == bool(gamma)
    assert 0 not in masks(modules)["4"].sum(1)  # the output layer keeps its units


def test_a_constant_fan_in_cannot_hold_an_ablated_unit():
    def model():
        return torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 4))

    def sparsifier(gamma):
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        return Sparsifier(
            net, optimizer, density=0.5, total_steps=10, rewirer={"srigl": {"gamma": gamma, "every": 2}}, layer="fixed-fan-in"
        )

    with pytest.raises(UserError, match="gamma=0"):
        sparsifier(0.3)
    assert {module.topology for module in sparsifier(0).modules.values()} == {"constant-fan-in"}


@pytest.mark.slow
def test_a_million_units():
    """No Python loop over units: one update of 3,000,000 connections, against its properties; printed for the record."""
    n_out, n_in, fan_in = 1_000_000, 256, 3
    row, col = ConstantFanIn().draw((n_out, n_in), fan_in * n_out, Rng("wide"))
    weight = Rng("wide", "weight").normal(row.numel()).float()
    module = Csr().build(
        torch.nn.Linear(n_in, n_out, device="meta"), Connections("wide", (n_out, n_in), row, col, weight), torch.zeros(n_out)
    )
    topology = Topology({"wide": module, "last": module}, torch.optim.SGD(module.parameters(), lr=0.1), seed=0)
    topology.modules.pop("last")
    module.is_last, module.layer_name = False, "wide"
    topology.watch_absent(True)
    module(torch.randn(4, n_in, generator=torch.Generator().manual_seed(0))).square().mean().backward()
    conn = module.connections()
    start = time.perf_counter()
    keep, new = SRigL(gamma=0.6).update(conn, Progress(100, 1000, 50), Rng(0), conn.nnz)
    print(f"SRigL, {n_out:,} units, {conn.nnz:,} connections: {time.perf_counter() - start:.1f} s")
    per_row = torch.bincount(torch.cat([conn.row[keep], new[0]]), minlength=n_out)
    alive = int((per_row > 0).sum())
    assert 0 < alive < n_out
    assert set(per_row.unique().tolist()) == {0, conn.nnz // alive}
