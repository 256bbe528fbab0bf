"""Random regrow drops what RigL drops, when RigL does; only where it grows is another."""

import torch
from by_hand import connections, flat_of, sites_of
from sparsefleet_plugins.rewiring.random_regrow import RandomRegrow
from sparsefleet_plugins.rewiring.rigl import RigL

from sparsefleet import Progress, Rng


def test_all_but_growing_is_rigl():
    grad = Rng("g").normal(400).view(20, 20)
    conn = connections(Rng("w").normal(400).view(20, 20), Rng("m").uniform(400).view(20, 20) < 0.3, grad=grad)
    for step in (100, 300, 500):
        now = Progress(step, 1000, 50)
        rigl, random = (plugin.update(conn, now, Rng(step), conn.nnz) for plugin in (RigL(), RandomRegrow()))
        assert torch.equal(rigl.keep, random.keep)
        assert rigl.new.shape == random.new.shape
        assert flat_of(rigl.new, 20) != flat_of(random.new, 20)
        assert not flat_of(random.new, 20) & sites_of(conn, random.keep)
    assert RandomRegrow().model_dump() == RigL().model_dump()
    for fact in ("replaces_step", "keeps_regrown", "revives", "varies_nnz", "fits_tiles"):
        assert getattr(RandomRegrow, fact) == getattr(RigL, fact)
    assert not RandomRegrow.needs_absent_grad


def test_grows_uniformly_over_absent_sites():
    counts, n = torch.zeros(30), 600
    conn = connections([[0.1, 0.2, 3.0, 4.0, 5.0] + [0.0] * 25])
    for seed in range(n):
        _, new = RandomRegrow(drop_fraction=0.8).update(conn, Progress(375, 1000, 50), Rng(seed), 5)  # 0.8 / 2 of 5
        counts[new[1]] += 1
    absent = counts[[0, 1, *range(5, 30)]]
    assert counts[2:5].sum() == 0
    assert absent.sum() == 2 * n
    assert (absent / n - 2 / 27).abs().max() < 5 * (2 / 27 / n) ** 0.5
