"""deepr-softmax: what is dropped by hand, and that sites are drawn as sampling one after another without replacement draws them."""

import math
from itertools import permutations

import pytest
import torch
from by_hand import connections, flat_of, sites_of
from sparsefleet_plugins.rewiring.deepr_softmax import DeeprSoftmax

from sparsefleet import Connections, Progress, Rng
from sparsefleet.connections import DenseValues

NOW = Progress(10, 100, 10)


def layer(weight, grad):
    conn = connections(weight)
    conn.dense = DenseValues(torch.as_tensor(weight, dtype=torch.float64), torch.as_tensor(grad, dtype=torch.float64), {})
    return conn


def test_drops_a_constant_share_of_the_smallest():
    conn = layer([[0.1, -0.2, 0.3, 0.4, -0.5, 0.6, 0.7, 0.8, 0.9, 1.0] + [0.0] * 10], [[0.0] * 20])
    for now in (NOW, Progress(99, 100, 10)):
        keep, new = DeeprSoftmax().update(conn, now, Rng(0), 10)
        assert conn.weight[~keep].tolist() == [0.1, -0.2, 0.3]
        assert new.shape == (2, 3)
        assert not flat_of(new, 20) & sites_of(conn, keep)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_pairs_come_as_often_as_in_sampling_without_replacement(temperature):
    weight = [[5.0, -5.0, 0.0, 0.0, 0.0, 0.0]]
    grad = [[9.0, 9.0, 0.0, -1.0, 2.0, 0.5]]
    p = {site: math.exp(abs(grad[0][site]) / temperature) for site in range(2, 6)}
    pair = {frozenset(two): 0.0 for two in permutations(p, 2)}
    for first, second in permutations(p, 2):
        pair[frozenset((first, second))] += p[first] / sum(p.values()) * p[second] / (sum(p.values()) - p[first])
    conn, counts, n = layer(weight, grad), dict.fromkeys(pair, 0), 4000
    for seed in range(n):
        new = DeeprSoftmax(temperature=temperature).grow(conn, 2, Rng(seed))
        counts[frozenset(new[1].tolist())] += 1
    for two, expected in pair.items():
        assert abs(counts[two] / n - expected) < 5 * math.sqrt(expected * (1 - expected) / n)


def test_a_site_of_vanishing_probability_comes_last():
    """At ``|g| / T`` of 200, a multinomial draw of three returned sites of probability zero."""
    grad = torch.zeros(1, 1000)
    grad[0, [17, 400, 999]] = torch.tensor([200.0, -210.0, 190.0])
    conn = layer([[1.0] + [0.0] * 999], grad)
    for seed in range(50):
        assert flat_of(DeeprSoftmax().grow(conn, 3, Rng(seed)), 1000) == {17, 400, 999}
    assert len(flat_of(DeeprSoftmax().grow(conn, 999, Rng(0)), 1000)) == 999  # and come, where no others are left


def test_a_draw_belongs_to_its_site():
    """What is kept changes nothing for the others."""
    grad = Rng("g").normal(400).view(20, 20)
    some, more = layer(torch.eye(20), grad), layer(torch.eye(20) + torch.eye(20).roll(1, 0), grad)
    a, b = (flat_of(DeeprSoftmax().grow(conn, 300, Rng(3)), 20) for conn in (some, more))
    assert len(a & b) >= 280


@pytest.mark.slow
def test_more_than_2_to_the_24_sites():
    shape = (4097, 4097)
    grad = Rng("big").at(torch.arange(shape[0] * shape[1])).float().view(shape)
    conn = Connections("layer", shape, torch.tensor([0]), torch.tensor([0]), torch.ones(1), dense=DenseValues(grad, grad, {}))
    new = DeeprSoftmax(temperature=1e-4).grow(conn, 1000, Rng(0))
    assert len(flat_of(new, shape[1])) == 1000
    assert float(grad[new[0], new[1]].min()) > 0.99


def test_parameters():
    assert DeeprSoftmax().model_dump() == {"every": 100, "drop_fraction": 0.3, "stop": 1.0, "temperature": 1.0}
