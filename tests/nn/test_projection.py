"""Choices projected onto what a layer can hold: constant fan-in and whole tiles; by hand, and against slow references."""

import pytest
import torch
from torch import nn

import sparsefleet.nn as sfnn
from sparsefleet.connections import Connections, sites_of_tiles
from sparsefleet.errors import PluginError
from sparsefleet.nn.absent import best_absent, best_absent_per_row, best_absent_tiles
from sparsefleet.nn.projection import fitted_draw, fitted_nnz
from sparsefleet.nn.topology import Topology
from sparsefleet.plugin import Progress, Rewirer, Update
from sparsefleet.registry import Registry, catalog
from sparsefleet.rng import Rng
from sparsefleet.sparsity.vocabulary import Block
from sparsefleet.trial.spec import PluginRef

REGISTRY = Registry(catalog())


def conn_of(rows, shape, **options):
    flat = torch.tensor([r * shape[1] + c for r, cols in enumerate(rows) for c in cols])
    return Connections("w", shape, flat // shape[1], flat % shape[1], torch.arange(1.0, flat.numel() + 1), **options)


def per_row(sites, n_out):
    return torch.bincount(sites[0], minlength=n_out).tolist()


def test_growing_fills_every_unit_up():
    conn = conn_of([[0, 1], [2], []], (3, 5), constant_fan_in=True)
    assert conn.lacking(3).tolist() == [0, 1, 2]
    assert per_row(conn.random_absent(3, Rng(0)), 3) == [0, 1, 2]
    gradient = torch.tensor([[9.0, 9, 9, 9, 9], [1, 5, 9, 2, 3], [0, -4, 1, 0, 3]])
    assert conn.best_absent(3, gradient).tolist() == [[1, 2, 2], [1, 1, 4]]
    for k in (2, 4):
        with pytest.raises(PluginError, match=rf"constant fan-in: {k} new connections for 3 units that have up to 2 of 3"):
            conn.random_absent(k, Rng(0))


def test_growing_takes_whole_tiles():
    conn = conn_of([[0, 1], [0, 1], [], []], (4, 6), tile=2)
    assert conn.tiles().tolist() == [0]
    new = conn.random_absent(8, Rng(1))
    flat = new[0] * 6 + new[1]
    tiles = torch.unique((new[0] // 2) * 3 + new[1] // 2)
    assert 0 not in tiles.tolist()
    assert torch.equal(flat, sites_of_tiles(tiles, (4, 6), 2))
    gradient = torch.zeros(4, 6)
    gradient[0, 0] = 100.0  # present
    gradient[3, 3], gradient[2, 2], gradient[0, 5] = -3.0, 2.0, 4.0
    best = conn.best_absent(4, gradient)
    assert (best[0] * 6 + best[1]).tolist() == sites_of_tiles(torch.tensor([4]), (4, 6), 2).tolist()  # 5 against 4


def test_ragged_tiles_are_smaller():
    assert sites_of_tiles(torch.tensor([1, 3]), (3, 3), 2).tolist() == [2, 5, 8]


@pytest.mark.parametrize(("topology", "tile", "want"), [("free", 1, 61), ("constant-fan-in", 1, 60), ("block", 4, 64)])
def test_the_nearest_count(topology, tile, want):
    assert fitted_nnz(61, (12, 20), topology, tile) == want
    assert fitted_nnz(1, (12, 20), topology, tile) == {"free": 1, "constant-fan-in": 12, "block": 16}[topology]
    assert fitted_nnz(240, (12, 20), topology, tile) == 240


def slow_best(gradient, present, counts):
    score = gradient.abs().clone()
    score.view(-1)[present] = -1
    found = []
    for r, n in enumerate(counts.tolist()):
        best = sorted(range(score.shape[1]), key=lambda c: (-float(score[r, c]), c))[:n]
        found += [[r, c] for c in sorted(best)]
    return torch.tensor(found).reshape(-1, 2).T


@pytest.mark.parametrize("seed", range(8))
def test_the_best_of_every_unit_are_found_tile_by_tile(seed, monkeypatch):
    monkeypatch.setattr("sparsefleet.nn.absent._TILE_ROWS", 3)
    monkeypatch.setattr("sparsefleet.nn.absent._TILE_COLS", 4)
    gen = torch.Generator().manual_seed(seed)
    x = torch.randint(-1, 3, (2, 19), generator=gen).double() * (torch.rand(19, generator=gen) < 0.7)  # ties and dead inputs
    grad = torch.randint(-1, 2, (2, 11), generator=gen).double()
    present = torch.nonzero(torch.rand(11 * 19, generator=gen) < 0.3).flatten()
    free = 19 - torch.bincount(present // 19, minlength=11)
    counts = (torch.rand(11, generator=gen) * (free + 1)).long().clamp(max=free)
    assert torch.equal(best_absent_per_row(x, grad, present, counts), slow_best(grad.T @ x, present, counts))


@pytest.mark.parametrize("units", [1, 64])
@pytest.mark.parametrize("seed", range(6))
def test_many_of_a_whole_layer_are_the_same_as_few_at_a_time(seed, units, monkeypatch):
    gen = torch.Generator().manual_seed(seed)
    x = torch.randint(-1, 3, (2, 19), generator=gen).double() * (torch.rand(19, generator=gen) < 0.7)
    grad = torch.randint(-1, 2, (2, 11), generator=gen).double()
    present = torch.nonzero(torch.rand(11 * 19, generator=gen) < 0.3).flatten()
    for k in (1, 7, 60, 11 * 19 - present.numel()):
        few = best_absent(x, grad, present, k)
        with monkeypatch.context() as patch:
            patch.setattr("sparsefleet.nn.absent._MANY", 0)
            patch.setattr("sparsefleet.nn.absent._SAMPLED_UNITS", units)
            patch.setattr("sparsefleet.nn.absent._TILE_ROWS", 3)
            assert torch.equal(best_absent(x, grad, present, k), few)


@pytest.mark.parametrize("seed", range(4))
def test_the_best_tiles_are_found_by_rows_of_tiles(seed, monkeypatch):
    monkeypatch.setattr("sparsefleet.nn.absent._TILE_ROWS", 4)
    gen = torch.Generator().manual_seed(seed)
    x, grad = torch.randn(3, 14, generator=gen, dtype=torch.float64), torch.randn(3, 11, generator=gen, dtype=torch.float64)
    score = nn.functional.pad((grad.T @ x).abs(), (0, 2, 0, 1)).view(3, 4, 4, 4).sum((1, 3)).view(-1)
    present = torch.tensor([0, 5, 11])
    score[present] = -1
    for n in (0, 1, 4, 9):
        want = torch.sort(torch.argsort(score, descending=True, stable=True)[:n]).values
        assert torch.equal(best_absent_tiles(x, grad, present, n, 4), want)


CONNECTIVITIES = [("random", {}), ("fixed-fan-in", {}), ("erdos-renyi", {}), ("small-world", {})]


@pytest.mark.parametrize(("name", "params"), CONNECTIVITIES)
def test_every_connectivity_is_drawn_onto_a_constant_fan_in(name, params):
    connectivity = REGISTRY.build("connectivity", PluginRef(name=name, params=params))
    sites = fitted_draw(connectivity, "w", (24, 40), 24 * 7, Rng(3), ("constant-fan-in", 1))
    assert per_row(sites, 24) == [7] * 24
    flat = sites[0] * 40 + sites[1]
    assert flat.unique().numel() == 24 * 7
    drawn = connectivity.draw((24, 40), 24 * 7, Rng(3))
    stays = torch.isin(drawn[0] * 40 + drawn[1], flat)
    surplus = (torch.bincount(drawn[0], minlength=24) - 7).clamp(min=0).sum()
    assert int((~stays).sum()) == int(surplus)  # what had to go, and no more


@pytest.mark.parametrize(("name", "params"), [*CONNECTIVITIES, ("blocks", {"size": 4}), ("rows", {})])
def test_every_connectivity_is_drawn_onto_tiles(name, params):
    connectivity = REGISTRY.build("connectivity", PluginRef(name=name, params=params))
    sites = fitted_draw(connectivity, "w", (24, 40), 16 * 12, Rng(3), ("block", 4))
    tiles = torch.unique((sites[0] // 4) * 10 + sites[1] // 4)
    assert tiles.numel() == 12
    assert torch.equal(torch.sort(sites[0] * 40 + sites[1]).values, sites_of_tiles(tiles, (24, 40), 4))


def test_blocks_are_drawn_onto_tiles_with_ragged_edges():
    """10 outputs and 64 inputs: three rows of tiles, of 4, 4 and 2 units; 128 connections are 8 to 16 tiles."""
    connectivity = REGISTRY.build("connectivity", PluginRef(name="blocks", params={"size": 4}))
    sites = fitted_draw(connectivity, "w", (10, 64), 128, Rng(3), ("block", 4))
    tiles = torch.unique(sites[0] // 4 * 16 + sites[1] // 4)
    assert 128 <= sites.shape[1] < 128 + 16
    assert torch.equal(torch.sort(sites[0] * 64 + sites[1]).values, sites_of_tiles(tiles, (10, 64), 4))
    assert sfnn.BlockLinear(64, 10, connections=sites).nnz == sites.shape[1]


def test_pruning_keeps_the_best_of_every_unit_or_tile():
    gen = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 12, generator=gen)
    full = Connections("w", (8, 12), torch.arange(96) // 12, torch.arange(96) % 12, weight.reshape(-1))
    module = sfnn.CsrLinear.from_connections(full, None)
    module.topology = "constant-fan-in"
    Topology({"w": module}, None, 0).prune({"w": module.values().abs()}, 0.3)  # 3.6 of 12: 4
    kept = torch.topk(weight.abs(), 4, dim=1).indices
    assert torch.equal(module.flat_sites(), torch.sort((kept + 12 * torch.arange(8)[:, None]).view(-1)).values)

    module = sfnn.CsrLinear.from_connections(full, None)
    module.topology, module.tile = "block", 4
    Topology({"w": module}, None, 0).prune({"w": module.values().abs()}, 0.3, pattern=Block(rows=4, cols=4))
    best = torch.topk(weight.abs().view(2, 4, 3, 4).mean((1, 3)).view(-1), 2).indices  # 28.8 of 96 connections: 2 tiles
    assert torch.equal(module.flat_sites(), sites_of_tiles(torch.sort(best).values, (8, 12), 4))


def test_rigl_on_a_constant_fan_in_drops_by_layer_and_grows_by_unit():
    layer = sfnn.FixedFanInLinear(16, 8, fan_in=4, seed=2, dtype=torch.float64)
    layer.layer_name = "w"
    rewirer = REGISTRY.build("rewirer", PluginRef(name="rigl", params={"every": 1}))
    topology = Topology({"w": layer}, None, 0)
    before, values = layer.flat_sites().clone(), layer.values().clone()
    x, up = torch.randn(5, 16, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    topology.watch_absent(True)
    layer(x).backward(up)
    parameter, storage = layer.values_, layer.values_.data_ptr()
    topology.rewire(rewirer, Progress(1, 100, 10))
    n_drop = rewirer.drop_count(conn_of([range(4)] * 8, (8, 16)), Progress(1, 100, 10))
    kept = before[torch.sort(torch.argsort(values.abs(), descending=True, stable=True)[: 32 - n_drop]).values]
    lacking = 4 - torch.bincount(kept // 16, minlength=8)
    grown = slow_best(up.T @ x, kept, lacking)
    assert torch.equal(layer.flat_sites(), torch.sort(torch.cat([kept, grown[0] * 16 + grown[1]])).values)
    assert layer.values_ is parameter
    assert layer.values_.data_ptr() == storage


class _OneUnit(Rewirer):
    """Grows in the first unit, whatever the layer can hold."""

    name = "one-unit"

    def update(self, conn, progress, rng, n_target):
        keep = torch.ones(conn.nnz, dtype=torch.bool)
        keep[-1] = False
        return Update(keep, torch.tensor([[0], [int(conn.best_absent_per_row(torch.tensor([1, 0]), torch.ones(conn.shape))[1])]]))


def test_an_update_that_breaks_the_fan_in_is_refused():
    layer = sfnn.FixedFanInLinear(6, 2, fan_in=2, seed=2)
    layer.layer_name = "w"
    with pytest.raises(Exception, match="'w' holds a constant fan-in, and these connections have 1 to 3"):
        Topology({"w": layer}, None, 0).rewire(_OneUnit(), Progress(1, 100, 10))
    layer(torch.zeros(1, 6))
    assert layer.values_.shape == (2, 2)
