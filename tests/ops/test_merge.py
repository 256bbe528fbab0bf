"""Merging sites against sorting them, values that follow, and sites as rows and columns."""

import pytest
import torch

from sparsefleet.ops import merge_sites, positions, split_sites, taken
from sparsefleet.rng import Rng


def by_sorting(flat, keep, fresh):
    stays = torch.nonzero(keep).flatten()
    sites, order = torch.sort(torch.cat([flat[stays], fresh]), stable=True)
    return sites, torch.cat([stays, torch.full_like(fresh, -1)])[order], int(torch.isin(fresh, flat[stays]).sum())


def same(found, expected):
    return torch.equal(found[0], expected[0]) and torch.equal(found[1].long(), expected[1]) and found[2] == expected[2]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("n", "n_fresh"), [(0, 0), (0, 5), (5, 0), (1, 1), (300, 100), (300, 5000), (120_000, 30_000), (120_000, 0)])
@pytest.mark.parametrize("kept", [0.0, 0.7, 1.0])
def test_merging_is_sorting(n, n_fresh, kept, threads):
    """Also where a dropped site comes back, and where all fresh ones lie on one side."""
    high = 2 * (n + n_fresh) + 7
    flat = Rng("flat", n).distinct(n, high)
    keep = Rng("keep", n).uniform(n) < kept
    taken = torch.zeros(high, dtype=torch.bool)
    taken[flat[keep]] = True
    for absent in (torch.nonzero(~taken).flatten()[:n_fresh], torch.nonzero(~taken).flatten()[-n_fresh:] if n_fresh else flat[:0]):
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(threads)
            found = merge_sites(flat, keep, absent)
        finally:
            torch.set_num_threads(before)
        assert same(found, by_sorting(flat, keep, absent))
    spread = torch.nonzero(~taken).flatten()[Rng("spread", n).distinct(n_fresh, int((~taken).sum()))]
    assert same(merge_sites(flat, keep, spread), by_sorting(flat, keep, spread))


@pytest.mark.parametrize("n", [1, 2, 7, 9, 1000, 150_000])
@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0])
def test_what_grows_where_something_stays_is_counted(n, kept):
    flat, keep = Rng("flat", n).distinct(n, 3 * n), Rng("keep", n).uniform(n) < kept
    fresh = torch.arange(3 * n)
    found = merge_sites(flat, keep, fresh)
    assert found[2] == int(keep.sum())
    assert same(found, by_sorting(flat, keep, fresh))


@pytest.mark.parametrize("n", [1, 2, 1000, 300_000])
@pytest.mark.parametrize("k", [0, 1, 2, 900, 250_000])
def test_positions(n, k):
    flat, sites = Rng("flat", n).distinct(n, 5 * n), Rng("sites", k).distinct(min(k, 5 * n), 5 * n)
    where = {site: place for place, site in enumerate(flat.tolist())}
    assert positions(flat, sites).tolist() == [where.get(site, -1) for site in sites.tolist()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int32])
@pytest.mark.parametrize("n", [1, 7, 150_000])
def test_values_follow_and_grown_ones_are_zero(n, dtype):
    values = torch.arange(1, 101).to(dtype)
    source = Rng("source", n).integers(n, 101) - 1
    for kind in (torch.int32, torch.int64):
        found = taken(values, source.to(kind))
        assert found.dtype == dtype
        assert torch.equal(found, torch.cat([values, torch.zeros(1, dtype=dtype)])[source])


@pytest.mark.parametrize(("n_out", "n_in", "nnz"), [(1, 1, 0), (1, 1, 1), (5, 7, 0), (5, 7, 12), (5, 7, 35), (900, 1100, 200_000)])
def test_sites_as_rows_and_columns(n_out, n_in, nnz):
    flat = Rng("split", nnz).distinct(nnz, n_out * n_in)
    crow, col = split_sites(flat, (n_out, n_in))
    assert crow.dtype == col.dtype == torch.int32
    assert torch.equal(crow.long(), torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(flat // n_in, minlength=n_out).cumsum(0)]))
    assert torch.equal(col.long(), flat % n_in)
