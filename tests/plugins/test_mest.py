"""MEST (EM&S) against a slow reference written from arXiv 2110.14032 and the bounds of its authors' runs."""

import numpy as np
import pytest
import torch
from by_hand import connections, flat_of, sites_of
from hypothesis import given, settings, strategies as st
from pydantic import ValidationError
from small_net import biases, dense_weights, examples, gradients, masks, sparse_net, train_step
from sparsefleet_plugins.connectivity.fixed_fan_in import FixedFanIn as ConstantFanIn
from sparsefleet_plugins.layers.csr import Csr
from sparsefleet_plugins.layers.fixed_fan_in import FixedFanIn
from sparsefleet_plugins.layers.masked import Masked
from sparsefleet_plugins.rewiring.mest import Mest
from torch import nn

from sparsefleet import Connections, Progress, Rng
from sparsefleet.nn import Sparsifier
from sparsefleet.nn.topology import Topology
from sparsefleet.registry import Registry, catalog
from sparsefleet.trial.build import build_network
from sparsefleet.trial.spec import TrialSpec

LR = 0.2


def test_the_authors_run():
    """160 epochs at sparsity 0.9: grow to 0.85, from epoch 90 on to 0.875, from epoch 120 on neither prune nor grow."""
    plugin, asked, nnz, seen = Mest(), 100, round(1000 * Mest().first_density(0.1)), {}
    assert nnz == 150
    for epoch in range(1, 161):
        progress = Progress(epoch * 7, 160 * 7, 7)
        if plugin.due(progress):
            conn = connections(torch.ones(20, 50), mask=torch.arange(1000).view(20, 50) < nnz)
            keep, new = plugin.update(conn, progress, Rng(epoch), asked)
            seen[epoch] = nnz, int(keep.sum()), int(keep.sum()) + new.shape[1]
            nnz = seen[epoch][2]
    assert list(seen) == list(range(5, 160, 5))  # to the end, but not at it: what grows then is never trained
    assert {seen[epoch] for epoch in range(5, 90, 5)} == {(150, 100, 150)}
    assert seen[90] == (150, 100, 125)
    assert {seen[epoch] for epoch in range(95, 120, 5)} == {(125, 100, 125)}
    assert seen[120] == (125, 100, 100)
    assert {seen[epoch] for epoch in range(125, 160, 5)} == {(100, 100, 100)}


def test_the_last_step_moves_nothing_unless_a_phase_begins_there():
    alone = Mest(upper=(1.0,), lower=(0.7,), switch=(), every_epochs=1)
    assert [step for step in range(41) if alone.due(Progress(step, 40, 10))] == [10, 20, 30]
    assert [step for step in range(3) if Mest(switch=(0.1, 0.75)).due(Progress(step, 2, 1))] == [1, 2]  # the last phase begins at the end


@given(st.integers(1, 400), st.integers(1, 50), st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_ends_with_exactly_what_was_asked_however_short_the_training(total, per_epoch, every):
    plugin, nnz = Mest(every_epochs=every), 150
    for step in range(1, total + 1):
        if plugin.due(Progress(step, total, per_epoch)):
            conn = connections(torch.ones(20, 50), mask=torch.arange(1000).view(20, 50) < nnz)
            keep, new = plugin.update(conn, Progress(step, total, per_epoch), Rng(step), 100)
            nnz = int(keep.sum()) + new.shape[1]
    assert nnz == 100


@given(st.integers(0, 10_000), st.integers(0, 48), st.integers(0, 32), st.floats(0, 1), st.sampled_from([0.0, 0.5, 2.0]), st.booleans())
@settings(max_examples=120, deadline=None)
def test_equals_the_slow_reference(seed, nnz, asked, done, gradient_weight, tied):
    draw = Rng(seed)
    live = draw.distinct(nnz, 48).tolist()
    mask = torch.zeros(48, dtype=torch.bool)
    mask[live] = True
    w, g = draw.normal(48), draw.normal(48)
    if tied:
        w, g = w.sign(), g.round()
    plugin = Mest(lower=(0.5, 0.75, 1.0), upper=(2.0, 1.5, 1.0), switch=(0.3, 0.7), gradient_weight=gradient_weight)
    progress = Progress(round(1000 * done), 1000, 50)
    conn = connections(w.view(6, 8), mask.view(6, 8), grad=g.view(6, 8))
    keep, new = plugin.update(conn, progress, Rng(seed), asked)
    phase = 0 if progress.step < 300 else 1 if progress.step < 700 else 2
    low, high = (round((0.5, 0.75, 1.0)[phase] * asked), min(48, round((2.0, 1.5, 1.0)[phase] * asked)))
    score = {site: abs(float(w[site])) + gradient_weight * abs(float(g[site])) for site in live}
    assert sites_of(conn, keep) == set(sorted(live, key=lambda site: (-score[site], site))[:low])
    grown = flat_of(new, 8)
    assert not grown & sites_of(conn, keep)
    assert int(keep.sum()) + len(grown) == int(keep.sum()) + new.shape[1] == high


@pytest.mark.parametrize("storage", [Masked(), Csr(), FixedFanIn()], ids=lambda layer: layer.name)
def test_a_training_equals_the_reference(storage):
    """Also on a constant fan-in, where every unit is pruned and grown to the same number."""
    constant = storage.topology == "constant-fan-in"
    sites = (lambda shape: ConstantFanIn().draw(shape, 4 * shape[0], Rng("sites", shape))) if constant else None
    network, modules = sparse_net(layer=storage, density=0.6, sites=sites)
    w, live, bias = dense_weights(modules), masks(modules), biases(modules)
    asked = {name: 2 * mask.shape[0] if constant else round(0.3 * mask.size) for name, mask in live.items()}
    topology = Topology(modules, torch.optim.SGD(network.parameters(), lr=LR), seed=0, asked=asked)
    plugin = Mest(every_epochs=2, upper=(2.0, 1.5, 1.0), gradient_weight=0.5)
    topology.start(plugin)
    x, y = examples()
    for step in range(1, 41):
        progress = Progress(step, 40, 2)
        _, by_weight, by_bias, _ = gradients(w, bias, x, y)
        train_step(network, modules, topology, x, y)
        for name in w:
            w[name] = w[name] - LR * by_weight[name] * live[name]
            bias[name] = bias[name] - LR * by_bias[name]
        if plugin.due(progress):
            topology.rewire(plugin, progress)
            high = 2.0 if step < 22.5 else 1.5 if step < 30 else 1.0
            for name, mask in live.items():
                n_out, n_in = mask.shape
                score = np.abs(w[name]) + 0.5 * np.abs(by_weight[name])
                rows = [range(i * n_in, (i + 1) * n_in) for i in range(n_out)] if constant else [range(mask.size)]
                kept = set()
                for row in rows:
                    mine = [site for site in row if mask.reshape(-1)[site]]
                    kept |= set(sorted(mine, key=lambda site: (-score.reshape(-1)[site], site))[: asked[name] // len(rows)])
                after = masks(modules)[name]
                assert kept <= set(np.flatnonzero(after).tolist())
                assert after.sum() == min(mask.size, n_out * round(high * asked[name] / n_out) if constant else round(high * asked[name]))
                if constant:
                    assert len(set(after.sum(1))) == 1
                else:
                    absent = sorted(set(range(mask.size)) - kept)
                    grown = Rng(0, "rewire", name, step).distinct(int(after.sum()) - len(kept), len(absent)).tolist()
                    assert set(np.flatnonzero(after).tolist()) == kept | {absent[i] for i in grown}
                stays = np.isin(np.arange(mask.size), list(kept)).reshape(mask.shape)
                w[name], live[name] = w[name] * stays, after
        for name in w:
            np.testing.assert_allclose(dense_weights(modules)[name], w[name], rtol=1e-9, atol=1e-13)
    assert {name: module.nnz for name, module in modules.items()} == asked


def test_what_grows_starts_at_zero_even_where_it_was_just_dropped():
    assert not Mest.keeps_regrown
    assert Mest().grown_weight(connections(torch.ones(1, 3)), torch.zeros((2, 2), dtype=torch.int64), Rng(0)).tolist() == [0.0, 0.0]


def test_bounds_that_cannot_be():
    for wrong in (
        {"upper": (1.5, 1.0)},
        {"upper": (1.5, 1.25, 1.1)},
        {"lower": (1.6, 1.0, 1.0)},
        {"lower": (0.0, 1.0, 1.0)},
        {"switch": (0.75, 0.5)},
        {"switch": (0.5, 1.0)},
    ):
        with pytest.raises(ValidationError):
            Mest(**wrong)
    assert Mest(upper=(1.0,), lower=(0.7,), switch=()).first_density(0.1) == 0.1  # MEST+EM alone


def spec(density, layer="csr"):
    return TrialSpec.model_validate(
        {
            "dataset": {"name": "digits"},
            "model": {"name": "mlp", "params": {"hidden": [50]}},
            "layer": {"name": layer},
            "method": {"rewirer": {"name": "mest"}},
            "density": density,
            "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9},
            "train": {"epochs": 1, "batch_size": 100},
        }
    )


@pytest.mark.parametrize("layer", ["masked", "csr", "fixed-fan-in"])
def test_a_trial_starts_at_the_upper_bound_and_asks_for_the_density(layer):
    network = build_network(spec(0.25, layer), registry=Registry(catalog()))
    n_sites = {"fc1": 64 * 50, "fc2": 50 * 10}
    assert network.nnz_asked == {name: n // 4 for name, n in n_sites.items()}
    held = {name: 0.375 * n for name, n in n_sites.items()}
    if layer == "fixed-fan-in":
        held["fc2"] = 10 * round(0.375 * 50)
    assert {name: module.nnz for name, module in network.sparse.items()} == pytest.approx(held, abs=1)


def test_a_trial_never_starts_beyond_all_sites():
    network = build_network(spec(0.8), registry=Registry(catalog()))
    assert {name: module.nnz for name, module in network.sparse.items()} == {"fc1": 3200, "fc2": 500}


def test_a_sparsifier_starts_at_the_upper_bound_and_ends_as_asked():
    net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    sparsifier = Sparsifier(net, optimizer, density=0.2, total_steps=16, steps_per_epoch=1, rewirer="mest")
    assert {name: module.nnz for name, module in sparsifier.modules.items()} == {"0": 180, "2": 90}
    peak = []
    for _ in range(16):
        optimizer.zero_grad()
        net(torch.randn(8, 20)).square().mean().backward()
        sparsifier.step()
        peak.append(sum(module.nnz for module in sparsifier.modules.values()))
    assert peak == [270] * 8 + [225] * 3 + [180] * 5


def test_empty_and_full_layers():
    for n_target, nnz in ((0, 0), (12, 12), (5, 12)):
        flat = Rng("sites").distinct(nnz, 12)
        conn = Connections("0", (3, 4), flat // 4, flat % 4, torch.zeros(nnz, dtype=torch.float64))
        keep, new = Mest().update(conn, Progress(1, 10, 5), Rng(0), n_target)
        assert int(keep.sum()) + new.shape[1] == min(12, round(1.5 * n_target))


@pytest.mark.slow
def test_more_than_2_to_the_24_connections():
    n = 2**24 + 4
    weight = Rng("big").at(torch.arange(n)).float()
    conn = Connections("layer", (2, n), torch.zeros(1, dtype=torch.int64).expand(n), torch.arange(n), weight)
    keep, new = Mest().update(conn, Progress(1, 100, 50), Rng(0), n // 2)
    assert (int(keep.sum()), new.shape[1]) == (n // 2, n // 4)
