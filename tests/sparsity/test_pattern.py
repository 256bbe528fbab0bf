import pytest
import torch

from sparsefleet.connections import Connections
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


@pytest.mark.parametrize("pattern", [Row(), Channel(), Block()])
def test_at_least_one_unit_stays(pattern):
    assert bool(kept(pattern, 0).any())
