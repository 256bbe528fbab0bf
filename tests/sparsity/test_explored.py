"""The explored share against a set of Python numbers, and its memory."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from sparsefleet import Rng
from sparsefleet.sparsity.explored import Explored


def sites(numbers):
    return torch.tensor(sorted(numbers), dtype=torch.int64)


def test_a_worked_example():
    explored = Explored({"a": 8, "b": 12})
    assert explored.fraction == 0.0
    explored.add("a", sites([0, 7]))
    explored.add("b", sites([11]))
    assert explored.fraction == 3 / 20
    explored.add("a", sites([0, 1]))  # 0 is there already, and 7 has left and still counts
    assert explored.fraction == 4 / 20


def bits_of(state):
    """Sites of a layer's state, whatever holds them."""
    if state.dtype == torch.int64:
        return set(state.tolist())
    return {8 * byte + bit for byte, value in enumerate(state.tolist()) for bit in range(8) if value >> bit & 1}


@given(st.integers(1, 3000), st.lists(st.sets(st.integers(0, 2999), max_size=60), min_size=1, max_size=12), st.integers(0, 11))
@settings(max_examples=120, deadline=None)
def test_equals_a_set_of_numbers_in_both_memories_and_after_a_resume(n_sites, updates, resumed_at):
    explored, seen = Explored({"a": n_sites, "b": 7}), set()
    for i, update in enumerate(updates):
        update = {site for site in update if site < n_sites}
        explored.add("a", sites(update))
        seen |= update
        assert explored.fraction == len(seen) / (n_sites + 7)
        assert bits_of(explored.state()["a"]) == seen
        assert explored.n_bytes == min(8 * len(seen), -(-n_sites // 8)) or explored.state()["a"].dtype == torch.uint8
        if i == resumed_at:
            again = Explored({"a": n_sites, "b": 7})
            again.load({name: tensor.clone() for name, tensor in explored.state().items()})
            assert again.fraction == explored.fraction
            explored = again


def test_takes_bits_where_they_are_smaller():
    explored = Explored({"a": 6400})  # 800 bytes of bits are 100 sites of 8 bytes
    explored.add("a", torch.arange(100))
    assert explored.state()["a"].dtype == torch.int64
    explored.add("a", torch.arange(50, 101))
    assert explored.state()["a"].dtype == torch.uint8
    assert explored.n_bytes == 800
    assert explored.fraction == 101 / 6400


def test_a_million_by_a_million_sites_cost_what_was_live():
    explored = Explored({"a": 10**12})
    for step in range(5):
        explored.add("a", Rng("flat", step).distinct(1000, 10**12))
    assert explored.n_bytes <= 8 * 5000
    assert 0 < explored.fraction <= 5000 / 10**12
    assert int(explored.state()["a"].max()) > 2**38


def test_stops_at_its_budget_and_says_so():
    explored = Explored({"a": 10**12, "b": 100}, most_bytes=8 * 1000)
    explored.add("b", torch.arange(10))
    explored.add("a", torch.arange(900))
    assert explored.fraction == 910 / (10**12 + 100)
    explored.add("a", torch.arange(900, 1100))
    assert explored.stopped
    assert explored.fraction is None  # never a share that leaves something out
    assert explored.n_bytes == 0
    explored.add("b", torch.arange(50))
    assert explored.fraction is None
    again = Explored({"a": 10**12, "b": 100}, most_bytes=8 * 1000)
    again.load(explored.state())
    assert again.stopped


def test_a_network_without_sparse_layers_has_no_share():
    explored = Explored({})
    assert explored.fraction is None
    explored.load(explored.state())
    assert not explored.stopped


@pytest.mark.slow
def test_more_than_2_to_the_24_connections():
    n = 2**24 + 5
    explored = Explored({"a": 2 * n})
    explored.add("a", torch.arange(n))
    explored.add("a", torch.arange(0, 2 * n, 2))
    assert explored.n_bytes == -(-2 * n // 8)
    assert explored.fraction == (n + n // 2) / (2 * n)  # the even ones of the upper half are new
