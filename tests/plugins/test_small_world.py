"""Small-world connectivity against its definition, written out site by site."""

import math
import time

import pytest
import torch
from hypothesis import given, settings, strategies as st
from sparsefleet_plugins.connectivity.random import RandomConnectivity
from sparsefleet_plugins.connectivity.small_world import Line, SmallWorld

from sparsefleet import Rng, check_sites


def distances(n_out, n_in):
    """``(n_out, n_in)`` by the definition: the middle of a narrow unit's share of the wide side, rounded down."""
    wide, narrow = max(n_out, n_in), min(n_out, n_in)
    place = torch.tensor([math.floor((k + 0.5) * wide / narrow) for k in range(narrow)])
    gap = (torch.arange(wide)[:, None] - place).abs()  # (wide, narrow)
    return gap if n_out == wide else gap.T


@given(st.integers(1, 30), st.integers(1, 30))
@settings(max_examples=80, deadline=None)
def test_every_site_has_one_number_and_its_distance(n_out, n_in):
    gap = distances(n_out, n_in)
    line = Line(max(n_out, n_in), min(n_out, n_in))
    sites = line.sites(torch.arange(line.wide))
    assert sites.tolist() == torch.bincount(gap.flatten(), minlength=line.wide).tolist()
    distance = torch.repeat_interleave(sites)
    rank = torch.arange(n_out * n_in) - (torch.cumsum(sites, 0) - sites)[distance]
    near, far = line.units(rank, distance)
    row, col = (near, far) if n_out < n_in else (far, near)
    assert check_sites(torch.stack([row, col]), (n_out, n_in), layer="all").numel() == n_out * n_in
    assert torch.equal(gap[row, col], distance)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "nnz"), [((12, 7), 25), ((6, 6), 10), ((5, 14), 30)])
def test_the_probability_of_every_site_is_the_power_law(shape, nnz):
    log = torch.log1p(distances(*shape).double())
    low, high = 0.0, 2.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float(torch.exp(-middle * log).sum()) > nnz else (low, middle)
    wanted, n = torch.exp(-high * log), 1500
    assert float(wanted.sum()) == pytest.approx(nnz, rel=1e-6)
    seen = torch.zeros(shape, dtype=torch.float64)
    for seed in range(n):
        row, col = SmallWorld().draw(shape, nnz, Rng(seed))
        seen[row, col] += 1
    assert ((seen / n - wanted).abs() <= 5 * (wanted * (1 - wanted) / n).sqrt() + 1e-9).all()


def local_share(sites, shape, within):
    """Share of connections between units that lie within this part of the line of one another."""
    n_out, n_in = shape
    gap = ((sites[0] + 0.5) / n_out - (sites[1] + 0.5) / n_in).abs()
    return float((gap <= within).double().mean())


@pytest.mark.parametrize(("shape", "density"), [((2000, 784), 0.1), ((784, 2000), 0.1), ((200, 200), 0.03), ((5000, 5000), 0.01)])
def test_mostly_local_with_a_few_long_connections(shape, density):
    nnz = round(density * shape[0] * shape[1])
    sites, uniform = (plugin.draw(shape, nnz, Rng(0)) for plugin in (SmallWorld(), RandomConnectivity()))
    assert local_share(uniform, shape, 0.05) == pytest.approx(0.0975, abs=0.02)
    assert local_share(sites, shape, 0.05) > 2 * local_share(uniform, shape, 0.05)
    assert 0.02 < 1 - local_share(sites, shape, 0.5) < 0.25  # a uniform draw has a quarter of its connections there


def test_a_larger_exponent_is_more_local():
    shape, nnz = (400, 300), 2400
    shares = [local_share(SmallWorld(exponent=exponent).draw(shape, nnz, Rng(0)), shape, 0.02) for exponent in (0, 0.5, 1, 2, 4)]
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(0.04, abs=0.02)
    assert shares[-1] > 0.95


@pytest.mark.parametrize(("shape", "nnz"), [((2000, 784), 156_800), ((10, 2000), 2000), ((200, 200), 1200), ((50_000, 50_000), 2_500_000)])
def test_where_the_public_implementation_never_ends_this_takes_seconds(shape, nnz):
    started = time.process_time()
    sites = SmallWorld().draw(shape, nnz, Rng(0))
    assert time.process_time() - started < 20  # half a second of CPU time on a quiet machine
    assert check_sites(sites, shape, layer="layer").numel() == nnz


def test_no_unit_of_the_wider_side_is_cut_off_by_its_place():
    """Centred labels would leave the outer 608 of 2,000 outputs far from every input; on a common length all have their share."""
    fan_in = torch.bincount(SmallWorld().draw((2000, 784), 156_800, Rng(0))[0], minlength=2000).double()
    assert fan_in.min() > 0.4 * fan_in.mean()
