"""In-time over-parameterisation against slow references written from arXiv 2102.02887 and its authors' code."""

import math

import numpy as np
import pytest
import torch
from by_hand import best_absent_slowly, connections, cosine_slowly, drawn, flat_of, mask_of, sites_of
from hypothesis import given, settings, strategies as st
from small_net import biases, dense_weights, examples, gradients, masks, sparse_net, train_step
from sparsefleet_plugins.layers.csr import Csr
from sparsefleet_plugins.layers.masked import Masked
from sparsefleet_plugins.rewiring.itop import ItopRigL, ItopSet

from sparsefleet import Connections, Progress, Rng
from sparsefleet.nn.topology import Topology
from sparsefleet.sparsity.explored import Explored

LR, STEPS, EVERY = 0.2, 30, 6


def kept_slowly(values, live, f):
    """Sites that stay: all but the share f of the smallest magnitudes, of equal ones the later go."""
    return set(sorted(live, key=lambda site: (-abs(values[site]), site))[: len(live) - int(f * len(live) + 1e-9)])


def test_defaults_are_the_authors():
    assert ItopSet().model_dump() == {"every": 1500, "drop_fraction": 0.5, "stop": 1.0}
    assert ItopRigL().model_dump() == {"every": 4000, "drop_fraction": 0.5, "stop": 1.0}
    due = [step for step in range(20_001) if ItopRigL().due(Progress(step, 20_000, 390))]
    assert due == [4000, 8000, 12000, 16000]  # to the end, but not at it: what grows then is never trained
    assert not ItopRigL.replaces_step  # other than RigL


def test_the_rate_falls_to_zero_over_the_whole_training():
    conn = connections(torch.ones(10, 100))
    counts = [ItopSet().drop_count(conn, Progress(step, 12_000, 390)) for step in (0, 3000, 6000, 9000, 12_000)]
    assert counts == [500, 426, 250, 73, 0]  # 250 (1 + cos(pi t / T))


def test_both_signs_compete():
    """SET itself drops of each sign; the authors drop by magnitude."""
    conn = connections([[0.1, 0.2, 0.3, 0.4, -1.0, -2.0, -3.0, -4.0]])
    keep, _ = ItopSet().update(conn, Progress(0, 100, 10), Rng(0), conn.nnz)
    assert conn.weight[~keep].tolist() == [0.1, 0.2, 0.3, 0.4]


@given(st.integers(0, 10_000), st.integers(1, 47), st.integers(1, 999), st.booleans())
@settings(max_examples=80, deadline=None)
def test_equals_the_slow_reference(seed, nnz, step, tied):
    weight, grad, live = drawn(seed, nnz, tied)
    conn, f = connections(weight, mask_of(live), grad=grad), cosine_slowly(0.5, step, 1000)
    want = kept_slowly(weight.reshape(-1).tolist(), live, f)
    for plugin in (ItopSet(), ItopRigL()):
        keep, new = plugin.update(conn, Progress(step, 1000, 50), Rng(0), nnz)
        assert sites_of(conn, keep) == want
        grown = flat_of(new, 8)
        assert len(grown) == nnz - len(want)
        assert not grown & want
    assert grown == flat_of(best_absent_slowly(grad, want, nnz - len(want)), 8)


def test_a_live_weight_of_zero_stays_a_connection():
    """The authors find the mask by ``weight != 0``: a weight that is zero, as every grown one is at first, is then no connection."""
    conn = connections([[0.0, 0.0, 0.3, 0.4, 0.0, 0.0]], mask=[[True] * 4 + [False] * 2])
    keep, new = ItopSet().update(conn, Progress(990, 1000, 50), Rng(0), 4)  # the share is 0.0001: nothing goes
    assert bool(keep.all())
    assert not new.numel()
    keep, new = ItopSet().update(conn, Progress(500, 1000, 50), Rng(0), 4)
    assert conn.flat[~keep].tolist() == [1]  # one of four, and of equal ones the later
    assert new.shape == (2, 1)


@pytest.mark.parametrize("storage", [Masked(), Csr()], ids=lambda layer: layer.name)
@pytest.mark.parametrize("plugin", [ItopSet(every=EVERY), ItopRigL(every=EVERY)], ids=lambda plugin: plugin.name)
def test_a_training_with_momentum_equals_the_reference(plugin, storage):
    """The optimizer's step comes first; what is dropped and grown at once keeps its weight and momentum; R_s is the union of the masks."""
    network, modules = sparse_net(layer=storage)
    topology = Topology(modules, torch.optim.SGD(network.parameters(), lr=LR, momentum=0.9), seed=0)
    topology.start(plugin)
    w, live, bias = dense_weights(modules), masks(modules), biases(modules)
    v, v_bias = ({name: np.zeros_like(value) for name, value in of.items()} for of in (w, bias))
    fired = {name: mask.copy() for name, mask in live.items()}
    explored, n_returned = Explored({name: mask.size for name, mask in live.items()}), 0
    x, y = examples()
    for step in range(1, STEPS + 1):
        progress = Progress(step, STEPS, 10)
        _, by_weight, by_bias, _ = gradients(w, bias, x, y)
        train_step(network, modules, topology, x, y)
        for name in w:
            v[name] = (0.9 * v[name] + by_weight[name]) * live[name]
            v_bias[name] = 0.9 * v_bias[name] + by_bias[name]
            w[name], bias[name] = w[name] - LR * v[name], bias[name] - LR * v_bias[name]
        for name, module in modules.items():
            explored.add(name, module.flat_sites())
        if plugin.due(progress):
            topology.rewire(plugin, progress)
            for name, mask in live.items():
                n_in, before = mask.shape[1], set(np.flatnonzero(mask).tolist())
                kept = kept_slowly(w[name].reshape(-1), before, 0.25 * (1 + math.cos(math.pi * step / STEPS)))
                k, absent = len(before) - len(kept), sorted(set(range(mask.size)) - kept)
                if plugin.needs_absent_grad:
                    grown = flat_of(best_absent_slowly(torch.as_tensor(by_weight[name]), kept, k), n_in)
                else:
                    grown = {absent[i] for i in Rng(0, "rewire", name, step).distinct(k, len(absent)).tolist()}
                n_returned += len(grown & before)
                live[name] = np.isin(np.arange(mask.size), list(kept | grown)).reshape(mask.shape)
                w[name], v[name] = w[name] * live[name], v[name] * live[name]
        for name, module in modules.items():
            fired[name] |= live[name]
            explored.add(name, module.flat_sites())
            assert (masks(modules)[name] == live[name]).all(), f"step {step}, layer {name}"
            np.testing.assert_allclose(dense_weights(modules)[name], w[name], rtol=1e-9, atol=1e-13)
            slot = topology.optimizer.state[module.weight_parameter]["momentum_buffer"].reshape(-1)
            stored = slot[module.flat_sites()] if slot.numel() == v[name].size else slot
            np.testing.assert_allclose(stored.numpy(), v[name].reshape(-1)[module.flat_sites().numpy()], rtol=1e-9, atol=1e-13)
        assert explored.fraction == sum(f.sum() for f in fired.values()) / sum(f.size for f in fired.values())
    assert n_returned > 0
    assert explored.fraction > 0.55  # of density 0.5


@pytest.mark.slow
def test_more_than_2_to_the_24_connections():
    n = 2**24 + 3
    weight = Rng("big").at(torch.arange(n)).float()
    conn = Connections("layer", (2, n), torch.zeros(1, dtype=torch.int64).expand(n), torch.arange(n), weight)
    keep, new = ItopSet().update(conn, Progress(500, 1000, 50), Rng(0), n)
    assert int(keep.sum()) == n - n // 4
    assert new.shape[1] == n // 4
