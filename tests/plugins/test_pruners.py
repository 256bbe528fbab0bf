"""magnitude and random, against lists that a reader can check."""

import numpy as np
import pytest
import torch
from by_hand import connections
from hypothesis import given, settings, strategies as st
from small_net import sparse_net
from sparsefleet_plugins.pruning.magnitude import Magnitude
from sparsefleet_plugins.pruning.random import Random

from sparsefleet import Rng, keep_best
from sparsefleet.nn.topology import Topology


def kept(plugin, conn, n):
    return conn.flat[keep_best(plugin.score(conn), n)].tolist()


def test_magnitude_keeps_the_largest():
    conn = connections([[0.1, -0.9, 0.0, 0.3], [-0.2, 0.8, 0.05, -0.4]])
    assert Magnitude().score(conn).tolist() == [0.1, 0.9, 0.3, 0.2, 0.8, 0.05, 0.4]
    assert kept(Magnitude(), conn, 3) == [1, 5, 7]  # -0.9, 0.8, -0.4


def test_magnitude_breaks_ties_by_position():
    # open_lth's `> sorted[k]` prunes one too many here and `>= sorted[k]` prunes none
    assert kept(Magnitude(), connections(torch.full((2, 4), -0.5)), 3) == [0, 1, 2]


@given(st.lists(st.floats(-2, 2, allow_nan=False, width=16), min_size=1, max_size=40), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_magnitude_equals_the_slow_reference(values, n):
    n = min(n, len(values))
    conn = connections([values], mask=[[True] * len(values)])
    slow = sorted(sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:n])
    assert kept(Magnitude(), conn, n) == slow


def test_normalised_magnitudes():
    conn = connections([[3.0, 0.0, -4.0], [0.0, 0.0, 12.0]])
    assert Magnitude(normalise="l2").score(conn).tolist() == [3 / 13, 4 / 13, 12 / 13]
    assert Magnitude(normalise="l2").score(connections(torch.zeros(1, 3), mask=torch.ones(1, 3))).tolist() == [0, 0, 0]


def two_layers():
    """A layer of 56 weights around 1e-3 times those of the two others."""
    _, modules = sparse_net(density=1.0)
    modules["0"].write_values(modules["0"].values() * 1e-3)
    return Topology(modules, None, seed=0), modules


@pytest.mark.parametrize("normalise", ["none", "l2"])
def test_global_magnitude_is_plain_unless_it_is_normalised(normalise):
    """jaxpruner's "global" divides by each layer's norm; ours does so only when asked."""
    topology, modules = two_layers()
    values = [module.values() for module in modules.values()]
    norms = [float(np.sqrt((value.numpy() ** 2).sum())) if normalise == "l2" else 1.0 for value in values]
    ranked = sorted(
        (-abs(float(w)) / norm, place, site)
        for place, (value, norm) in enumerate(zip(values, norms, strict=True))
        for site, w in enumerate(value)
    )
    counts = [sum(layer == place for _, layer, _ in ranked[:61]) for place in range(3)]
    if normalise == "none":
        assert counts[0] == 0
        counts[0], counts[counts.index(max(counts))] = 1, max(counts) - 1  # no layer may disconnect the network
    topology.prune(topology.score(Magnitude(normalise=normalise), 0), 0.5, distribution="global")
    for place, module in enumerate(modules.values()):
        best = [site for _, layer, site in ranked if layer == place][: counts[place]]
        assert module.flat_sites().tolist() == sorted(best)


def test_normalising_in_float32_keeps_neighbours_apart():
    """0.1 and the next float are one quotient in float32; then the wrong one would go by position."""
    low = torch.tensor(0.1)
    high = torch.nextafter(low, torch.tensor(1.0))
    conn = connections([[1.0, 1.0, 1.0, 1.0]])
    conn.weight = torch.stack([low, high, torch.tensor(1.7), torch.tensor(1.3)])
    n_equal = 0
    for scale in torch.linspace(0.5, 4, 200):
        conn.weight[2] = scale
        score = Magnitude(normalise="l2").score(conn)
        assert score[0] < score[1]
        n_equal += bool(conn.weight[0] / conn.weight.norm() == conn.weight[1] / conn.weight.norm())
    assert n_equal > 0


def test_random_belongs_to_the_site():
    conn = connections(torch.ones(6, 7), rng=Rng(3, "prune", "layer", 0))
    score = Random().score(conn)
    assert torch.equal(Random().score(conn), score)  # reading draws nothing from the stream
    part = conn.select(torch.arange(conn.nnz) % 2 == 1)
    assert torch.equal(Random().score(part), score[1::2])  # whatever else is stored


def test_random_keeps_every_site_equally_often():
    n_kept = torch.zeros(20)
    for seed in range(600):
        conn = connections(torch.ones(4, 5), rng=Rng(seed, "prune", "layer", 0))
        n_kept[kept(Random(), conn, 5)] += 1
    share = n_kept / 600  # expectation 0.25, standard error 0.018
    assert share.min() > 0.25 - 5 * 0.018
    assert share.max() < 0.25 + 5 * 0.018
