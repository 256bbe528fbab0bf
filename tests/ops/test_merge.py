"""Merging sites against sorting them."""

import pytest
import torch

from sparsefleet.ops import merge_sites
from sparsefleet.rng import Rng


def by_sorting(flat, keep, fresh):
    positions = torch.nonzero(keep).flatten()
    sites, order = torch.sort(torch.cat([flat[positions], fresh]))
    return sites, torch.cat([positions, torch.full_like(fresh, -1)])[order]


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
        assert all(torch.equal(a, b) for a, b in zip(found, by_sorting(flat, keep, absent), strict=True))
    spread = torch.nonzero(~taken).flatten()[Rng("spread", n).distinct(n_fresh, int((~taken).sum()))]
    assert all(torch.equal(a, b) for a, b in zip(merge_sites(flat, keep, spread), by_sorting(flat, keep, spread), strict=True))
