import itertools
import math

import pytest
import torch
from small_net import sparse_net

from sparsefleet.connections import Connections
from sparsefleet.nn.topology import Topology
from sparsefleet.sparsity.pattern import keep_by_pattern
from sparsefleet.sparsity.vocabulary import Block, Channel, NOfM, Row, Unstructured


def full(weight: torch.Tensor) -> Connections:
    n_out, n_in = weight.shape
    flat = torch.arange(weight.numel())
    return Connections("w", (n_out, n_in), flat // n_in, flat % n_in, weight.reshape(-1))


W = torch.tensor([[1.0, 9.0, 2.0, 8.0], [3.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 1.0], [7.0, 0.0, 0.0, 7.0]])


def kept(pattern, n_keep, weight=W, kernel=1):
    conn = full(weight)
    return keep_by_pattern(conn.weight.abs(), conn, n_keep, pattern, kernel).view(weight.shape)


def test_unstructured_is_exact():
    assert int(kept(Unstructured(), 5).sum()) == 5


def test_rows_go_whole_lowest_sum_first():
    assert kept(Row(), 8).all(1).tolist() == [True, False, False, True]


def test_rows_are_not_simply_the_first_ones():
    assert not kept(Row(), 4, W.flip(0))[0].all()


def test_channels_go_whole():
    assert kept(Channel(), 8).all(0).tolist() == [False, True, False, True]


def test_channels_of_a_convolution_keep_all_kernel_elements():
    weight = torch.tensor([[1.0, 1.0, 5.0, 5.0], [1.0, 1.0, 5.0, 5.0]])  # two channels of two kernel elements
    assert kept(Channel(), 4, weight, kernel=2).tolist() == [[False, False, True, True]] * 2


def test_two_of_four_keeps_the_two_largest_of_each_four_consecutive_inputs():
    mask = kept(NOfM(n=2, m=4), 8)
    assert mask.sum(1).tolist() == [2, 2, 2, 2]
    assert mask[0].tolist() == [False, True, False, True]
    assert mask[1].tolist() == [True, True, False, False]  # ties by position


def test_two_of_four_on_a_ragged_width():
    assert kept(NOfM(n=2, m=4), 3, torch.arange(6.0).view(1, 6)).tolist() == [[False, False, True, True, True, True]]


def test_blocks_go_whole_and_ragged_edges_are_smaller_blocks():
    weight = torch.ones(5, 5)
    weight[:2, :2] = 10
    mask = kept(Block(rows=2, cols=2), 4, weight)
    assert mask[:2, :2].all()
    assert int(mask.sum()) == 4
    weight[4, 4] = 20
    mask = kept(Block(rows=2, cols=2), 5, weight)
    assert mask[4, 4] and mask[:2, :2].all() and int(mask.sum()) == 5


def test_a_block_scores_the_mean_or_the_highest_of_what_is_there():
    """A ragged block is judged by its own size, and one spike wins by ``max`` alone."""
    weight = torch.ones(3, 5)
    weight[0, 0] = 3.5  # mean of its block 1.625
    weight[:2, 2:4] = 2
    weight[2, 4] = 1.9  # a block of one
    assert kept(Block(rows=2, cols=2), 4, weight)[:2, 2:4].all()
    mask = kept(Block(rows=2, cols=2, score="max"), 4, weight)
    assert mask[:2, :2].all()
    assert int(mask.sum()) == 4
    assert kept(Block(rows=2, cols=2), 5, weight)[2, 4]


def test_blocks_are_the_nearest_whole_number_to_the_count():
    for n_keep in range(1, 36):
        n = int(kept(Block(rows=2, cols=2), n_keep, torch.rand(6, 6)).sum())
        assert n % 4 == 0
        assert abs(n - n_keep) <= 2 or n == 4


@pytest.mark.parametrize("score", ["mean", "max"])
def test_blocks_of_a_layer_that_is_thin_already(score):
    """Only what is live is judged: a block with one live connection has that one's score, by mean and by max."""
    conn = full(W)
    live = torch.tensor([1, 2, 6, 7, 13])
    part = conn.select(live)
    keep = keep_by_pattern(part.weight.abs(), part, 1, Block(rows=2, cols=2, score=score))
    assert part.flat[keep].tolist() == [1]  # what is live of the tiles: {9}, {2, 3, 3}, {0}


def test_two_of_four_of_a_convolution_runs_along_the_input_channels():
    """Weights ``(out, in, kh, kw)`` flatten to channel * kernel + offset: a group is four channels at one kernel element."""
    n_out, channels, kernel = 3, 8, 9
    weight = torch.rand(n_out, channels * kernel)
    mask = kept(NOfM(n=2, m=4), weight.numel() // 2, weight, kernel=kernel).view(n_out, 2, 4, kernel)
    slow = torch.zeros_like(mask)
    for o, g, k in itertools.product(range(n_out), range(2), range(kernel)):
        values = [float(weight.view(n_out, 2, 4, kernel)[o, g, c, k]) for c in range(4)]
        for c in sorted(range(4), key=lambda c: -values[c])[:2]:
            slow[o, g, c, k] = True
    assert torch.equal(mask, slow)


def test_two_of_four_at_a_schedule_that_is_not_there_yet():
    weight = torch.rand(2, 8)
    assert kept(NOfM(n=2, m=4), 16, weight).sum() == 16
    assert kept(NOfM(n=2, m=4), 11, weight).view(4, 4).sum(1).tolist() == [3] * 4
    assert kept(NOfM(n=2, m=4), 8, weight).view(4, 4).sum(1).tolist() == [2] * 4
    assert kept(NOfM(n=2, m=4), 2, weight).view(4, 4).sum(1).tolist() == [2] * 4  # never fewer than n


@pytest.mark.parametrize("shape", [(7, 9), (3, 5), (1, 63)])
def test_two_of_four_holds_where_half_the_sites_is_no_whole_number(shape):
    """A budget of 31.5 rounded to 32 is no reason to keep three of four."""
    weight = torch.rand(shape)
    mask = kept(NOfM(n=2, m=4), math.floor(weight.numel() / 2 + 0.5), weight)
    for start in range(0, shape[1], 4):
        group = mask[:, start : start + 4]
        assert group.sum(1).tolist() == [min(2, group.shape[1])] * shape[0]


@pytest.mark.parametrize("distribution", ["uniform", "erk", "global"])
def test_every_layer_has_two_of_four_whatever_the_distribution(distribution):
    _, modules = sparse_net(density=1.0)
    scores = {name: (10.0 ** -int(name)) * module.values().abs() for name, module in modules.items()}
    Topology(modules, None, seed=0).prune(scores, 0.5, distribution=distribution, pattern=NOfM(n=2, m=4))
    for module in modules.values():
        for start in range(0, module.matrix_shape[1], 4):
            assert set(module.mask[:, start : start + 4].sum(1).tolist()) == {2}


def test_ties_between_units_go_by_position():
    ones = torch.ones(4, 4)
    assert kept(Row(), 8, ones).all(1).tolist() == [True, True, False, False]
    assert kept(Channel(), 8, ones).all(0).tolist() == [True, True, False, False]
    for score in ("mean", "max"):
        assert kept(Block(rows=2, cols=2, score=score), 8, ones).all(1).tolist() == [True, True, False, False]


def test_units_pruned_before_are_not_chosen_again():
    conn = full(W)
    part = conn.select((conn.row != 3) & (conn.row != 0))
    keep = keep_by_pattern(part.weight.abs(), part, 12, Row())
    assert part.row[keep].unique().tolist() == [1, 2]


@pytest.mark.parametrize("pattern", [Row(), Channel(), Block()])
def test_at_least_one_unit_stays(pattern):
    assert bool(kept(pattern, 0).any())


@pytest.mark.parametrize("pattern", [Row(), Channel()])
def test_units_of_a_layer_that_is_thin_already_count_with_what_they_have(pattern):
    """Two connections per unit of eight sites: counted as eight, two of the eight units would stay where four are asked."""
    mask = torch.eye(8, dtype=torch.bool) | torch.eye(8, dtype=torch.bool).roll(1, 1)
    flat = torch.nonzero(mask.view(-1)).flatten()
    score = 1.0 + (flat // 8 if isinstance(pattern, Row) else flat % 8)
    conn = Connections("w", (8, 8), flat // 8, flat % 8, score)
    keep = keep_by_pattern(score, conn, 8, pattern)
    unit = conn.row if isinstance(pattern, Row) else conn.col
    assert unit[keep].unique().tolist() == [4, 5, 6, 7]
    assert int(keep.sum()) == 8
    for n_keep in range(17):  # of two numbers that are as near the larger
        assert int(keep_by_pattern(score, conn, n_keep, pattern).sum()) == max(2, n_keep + n_keep % 2)


@pytest.mark.parametrize("pattern", [Unstructured(), Row(), Channel(), Block(), NOfM()])
def test_a_layer_without_connections_has_nothing_to_choose(pattern):
    none = torch.empty(0, dtype=torch.int64)
    assert keep_by_pattern(torch.empty(0), Connections("w", (4, 4), none, none, torch.empty(0)), 0, pattern).shape == (0,)
