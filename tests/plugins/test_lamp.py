"""LAMP (arXiv 2010.07611, section 2) against loops."""

import numpy as np
import pytest
import torch
from by_hand import connections
from hypothesis import given, settings, strategies as st
from small_net import sparse_net
from sparsefleet_plugins.pruning.lamp import Lamp

from sparsefleet import Connections, Rng, keep_best
from sparsefleet.nn.topology import Topology


def slow_scores(weights):
    """Ascending by magnitude, of equal ones the later position first; each square over the sum from there on."""
    order = sorted(range(len(weights)), key=lambda i: (abs(weights[i]), -i))
    scores = [0.0] * len(weights)
    for place, i in enumerate(order):
        rest = sum(weights[j] ** 2 for j in order[place:])
        scores[i] = weights[i] ** 2 / rest if rest else 0.0
    return scores


def test_the_paper_worked_out():
    assert Lamp().score(connections([[3.0, -1.0, 2.0]])).tolist() == [1.0, 1 / 14, 4 / 13]


@given(st.lists(st.floats(-2, 2, allow_nan=False, width=16), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_equals_the_slow_reference(values):
    conn = connections([values], mask=[[True] * len(values)])
    np.testing.assert_allclose(Lamp().score(conn).numpy(), slow_scores(values), rtol=1e-12)


def test_of_equal_weights_the_earlier_counts_as_larger():
    score = Lamp().score(connections(torch.full((1, 4), -0.5)))
    assert score.tolist() == [1, 1 / 2, 1 / 3, 1 / 4]


def test_a_layer_of_zeros_scores_zero():
    assert Lamp().score(connections(torch.zeros(1, 3), mask=torch.ones(1, 3))).tolist() == [0, 0, 0]


def test_global_keeps_the_largest_of_every_layer():
    """The largest weight of a layer scores 1, however small it is; by plain magnitude the small layer would be left with nothing."""
    _, modules = sparse_net(density=1.0)
    modules["0"].write_values(modules["0"].values() * 1e-6)
    topology = Topology(modules, None, seed=0)
    want = torch.cat([torch.tensor(slow_scores(module.values().tolist())) for module in modules.values()])
    keep = torch.split(keep_best(want, round(0.1 * topology.n_sites)), [module.nnz for module in modules.values()])
    plain = keep_best(torch.cat([module.values().abs() for module in modules.values()]), round(0.1 * topology.n_sites))
    topology.prune(topology.score(Lamp(), 0), 0.1, distribution="global")
    for module, part in zip(modules.values(), keep, strict=True):
        assert torch.equal(module.flat_sites(), torch.nonzero(part).flatten())
    assert modules["0"].nnz > 1
    assert int(plain[:56].sum()) == 0


def test_the_order_within_a_layer_is_that_of_magnitudes():
    weight = Rng("lamp").normal(100_000).float()
    conn = connections([weight.tolist()], mask=torch.ones(1, 100_000))
    for n in (1, 1000, 50_000, 99_999):
        assert torch.equal(keep_best(Lamp().score(conn), n), keep_best(conn.weight.abs(), n))


@pytest.mark.slow
def test_float64_sums_where_float32_stops():
    """2**24 + 2**20 equal weights: a float32 sum stops at 2**24, so the last 2**20 scores of the authors' code would be equal."""
    n, tail = 2**24 + 2**20, 2**20
    weight = torch.ones(n)
    weight[0] = 2.0  # the sum's first term
    zero = torch.zeros(1, dtype=torch.int64).expand(n)
    score = Lamp().score(Connections("layer", (1, n), zero, torch.arange(n), weight))
    torch.testing.assert_close(score, weight.double().square() / torch.arange(4, n + 4).double(), rtol=1e-12, atol=0)
    in_float32 = np.cumsum(np.ones(n, dtype=np.float32))
    assert (in_float32[-tail:] == 2**24).all()
    assert int((score[-tail:].diff() < 0).sum()) == tail - 1
