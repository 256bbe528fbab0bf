"""Random connectivity: exact, uniform, in memory by nnz."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from sparsefleet_plugins.connectivity.random import RandomConnectivity

from sparsefleet import Rng, UserError, check_sites


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_exact_count_of_different_sites(n_out, n_in, share, seed):
    nnz = round(share * n_out * n_in)
    sites = RandomConnectivity().draw((n_out, n_in), nnz, Rng(seed))
    flat = check_sites(sites, (n_out, n_in), layer="layer")
    assert flat.numel() == nnz
    assert torch.equal(flat, sites[0] * n_in + sites[1])  # already ascending


def test_every_site_is_equally_likely():
    counts = torch.zeros(4, 5)
    for seed in range(800):
        row, col = RandomConnectivity().draw((4, 5), 6, Rng(seed))
        counts[row, col] += 1
    assert (counts / 800 - 0.3).abs().max() < 5 * (0.3 * 0.7 / 800) ** 0.5


def test_a_very_wide_layer():
    sites = RandomConnectivity().draw((1_000_000, 1_000_000), 1000, Rng(0))
    assert sites.shape == (2, 1000)
    assert 400_000 < sites[1].double().mean() < 600_000


def test_too_many():
    with pytest.raises(UserError, match="7 connections do not fit in a layer of 2 x 3"):
        RandomConnectivity().draw((2, 3), 7, Rng(0))
