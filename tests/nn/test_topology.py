"""Topology changes: counts, slots, state, and that storages agree step by step."""

import pytest
import torch
from torch import nn

from sparsefleet.connections import Connections
from sparsefleet.errors import InvalidMask, PluginError
from sparsefleet.nn.materialise import draw_connections, materialise, weight_shape
from sparsefleet.nn.module import remap_sites
from sparsefleet.nn.topology import Topology
from sparsefleet.plugin import Connectivity, Progress, Rewirer, Update
from sparsefleet.registry import Registry, catalog
from sparsefleet.trial.spec import PluginRef

REGISTRY = Registry(catalog())


class _Random(Connectivity):
    name = "test-random"

    def draw(self, shape, nnz, rng):
        flat = rng.distinct(nnz, shape[0] * shape[1])
        return torch.stack([flat // shape[1], flat % shape[1]])


def network(layer, *, density=0.2, seed=3, dtype=torch.float64, sizes=(12, 18, 5)):
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(sizes[0], sizes[1]), nn.ReLU(), nn.LayerNorm(sizes[1]), nn.Linear(sizes[1], sizes[2]))
    plugin = REGISTRY.build("layer", PluginRef(name=layer))
    modules = {}
    for name in ("0", "3"):
        shape = weight_shape(module.get_submodule(name))
        nnz = shape[0] * shape[1] if layer == "dense" else round(density * shape[0] * shape[1])
        modules[name] = plugin, draw_connections(name, shape, nnz, _Random(), seed, torch.device("cpu"))
    return module, materialise(module, modules, seed=seed, dtype=dtype)


def data():
    gen = torch.Generator().manual_seed(1)
    return torch.randn(32, 12, dtype=torch.float64, generator=gen), torch.randint(5, (32,), generator=gen)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
}


def train(layer, rewirer_name, params, optimizer="sgd", n_steps=40):
    module, sparse = network(layer)
    optim = OPTIMIZERS[optimizer](module.parameters())
    topology = Topology(sparse, optim, 3)
    rewirer = REGISTRY.build("rewirer", PluginRef(name=rewirer_name, params=params))
    topology.start(rewirer)
    x, y = data()
    history = []
    for step in range(n_steps):
        before, after = Progress(step, n_steps, 8), Progress(step + 1, n_steps, 8)
        in_place = rewirer.replaces_step and rewirer.due(before)
        topology.watch_absent(rewirer.needs_absent_grad)
        optim.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        if not in_place:
            optim.step()
            topology.enforce()
            topology.on_step(rewirer, optim.param_groups[0]["lr"], step)
        if in_place or (not rewirer.replaces_step and rewirer.due(after)):
            topology.rewire(rewirer, before if in_place else after)
        history.append([m.flat_sites().clone() for m in sparse.values()])
    return history, [m.values().clone() for m in sparse.values()], sparse, optim


REWIRERS = [("static", {}), ("set", {}), ("set", {"grown_std": 0.1}), ("rigl", {"every": 5}), ("deep-r", {"alpha": 0.02})]


@pytest.mark.parametrize(("name", "params"), REWIRERS)
def test_masked_and_csr_have_the_same_masks_at_every_step(name, params):
    masked, masked_values, *_ = train("masked", name, params)
    csr, csr_values, *_ = train("csr", name, params)
    for a, b in zip(masked, csr, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    for a, b in zip(masked_values, csr_values, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert name == "static" or any(not torch.equal(masked[0][0], later[0]) for later in masked[1:])


@pytest.mark.parametrize("layer", ["masked", "csr"])
@pytest.mark.parametrize(("name", "params"), REWIRERS)
def test_nnz_is_constant(layer, name, params):
    history, *_ = train(layer, name, params)
    assert {tuple(f.numel() for f in sites) for sites in history} == {(43, 18)}


def test_twin_masked_and_csr_start_from_the_same_weights():
    dense, _ = network("dense")
    for layer in ("masked", "csr"):
        _, sparse = network(layer)
        for name, module in sparse.items():
            expected = dense.get_submodule(name).weight.detach().reshape(-1)[module.flat_sites()]
            assert torch.equal(module.values(), expected)
            assert torch.equal(module.bias.detach(), dense.get_submodule(name).bias.detach())


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_absent_weights_stay_zero_under_every_optimizer(optimizer):
    """methods.md rule 4: a zero gradient does not stop momentum or weight decay."""
    _, _, sparse, _ = train("masked", "set", {}, optimizer)
    for module in sparse.values():
        assert bool((module.weight_parameter.detach()[~module.mask] == 0).all())


@pytest.mark.parametrize("layer", ["masked", "csr"])
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_all_slots_of_grown_connections_are_zero_and_kept_ones_follow(layer, optimizer):
    module, sparse = network(layer)
    optim = OPTIMIZERS[optimizer](module.parameters())
    x, y = data()
    for _ in range(3):
        optim.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optim.step()
    first = sparse["0"]
    parameter = first.weight_parameter
    where = (lambda slot: slot) if layer == "csr" else (lambda slot: slot.reshape(-1)[first.flat_sites()])
    before_sites = first.flat_sites().clone()
    before = {k: where(s).clone() for k, s in optim.state[parameter].items() if s.dim()}
    assert before
    keep = torch.ones(first.nnz, dtype=torch.bool)
    keep[::4] = False
    new = first.connections().select(keep).random_absent(int((~keep).sum()))
    Topology(sparse, optim, 0).change("0", keep, new)
    assert first.weight_parameter is parameter
    is_kept = torch.isin(first.flat_sites(), before_sites[keep])
    for key, old in before.items():
        now = where(optim.state[parameter][key])
        assert torch.equal(now[is_kept], old[keep]), key
        assert bool((now[~is_kept] == 0).all()), key
    optim.zero_grad()
    nn.functional.cross_entropy(module(x), y).backward()
    optim.step()  # still usable


def test_pruning_shrinks_csr_in_place_and_training_goes_on():
    module, sparse = network("csr")
    optim = OPTIMIZERS["adam"](module.parameters())
    topology = Topology(sparse, optim, 0)
    x, y = data()
    parameter = sparse["0"].weight_parameter
    for density in (0.15, 0.1):
        nn.functional.cross_entropy(module(x), y).backward()
        optim.step()
        optim.zero_grad()
        topology.prune({n: m.values().abs() for n, m in sparse.items()}, density)
        assert topology.nnz == round(density * topology.n_sites)
        assert sparse["0"].weight_parameter is parameter
        assert optim.state[parameter]["exp_avg"].shape == parameter.shape


def test_what_is_pruned_stays_pruned():
    _, sparse = network("masked", density=1.0)
    topology = Topology(sparse, None, 0)
    seen = None
    for density in (0.5, 0.3, 0.1):
        topology.prune({n: m.values().abs() for n, m in sparse.items()}, density, distribution="global")
        sites = set(sparse["0"].flat_sites().tolist())
        assert seen is None or sites <= seen
        seen = sites


def test_global_pruning_leaves_every_layer_a_connection():
    _, sparse = network("masked", density=1.0)
    scores = {"0": torch.ones(sparse["0"].nnz), "3": torch.zeros(sparse["3"].nnz)}
    Topology(sparse, None, 0).prune(scores, 0.2, distribution="global")
    assert sparse["3"].nnz >= 1
    assert sparse["0"].nnz + sparse["3"].nnz == round(0.2 * (12 * 18 + 18 * 5))


def test_a_regrown_connection_keeps_or_loses_its_past_as_the_method_says():
    flat = torch.tensor([2, 5, 9])
    keep, new = torch.tensor([True, False, False]), torch.tensor([5, 7])
    kept = remap_sites(flat, keep, new, regrown_are_kept=True)
    assert (kept.flat.tolist(), kept.source.tolist(), kept.dropped.tolist(), kept.grown.tolist()) == ([2, 5, 7], [0, 1, -1], [9], [7])
    anew = remap_sites(flat, keep, new, regrown_are_kept=False)
    assert (anew.flat.tolist(), anew.source.tolist(), anew.dropped.tolist(), anew.grown.tolist()) == (
        [2, 5, 7],
        [0, -1, -1],
        [5, 9],
        [5, 7],
    )


class _Bad(Rewirer):
    name = "bad"
    how: str

    def update(self, conn, progress, rng, n_target):
        keep = torch.ones(conn.nnz, dtype=torch.bool)
        keep[0] = False
        new = conn.select(keep).random_absent(1)
        if self.how == "count":
            new = new[:, :0]
        elif self.how == "present":
            new = torch.stack([conn.row[1:2], conn.col[1:2]])
        elif self.how == "range":
            new = torch.tensor([[99], [0]])
        elif self.how == "shape":
            new = new.flatten()
        return Update(keep, new)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("count", PluginError, "left layer '0' with 42 connections, asked 43"),
        ("present", PluginError, "1 of 1 grown connections are already there"),
        ("range", InvalidMask, "1 of 1 connections lie outside 18 x 12"),
        ("shape", InvalidMask, "must have shape"),
    ],
)
def test_a_rewirer_that_breaks_the_rules_is_named(how, error, message):
    _, sparse = network("csr")
    with pytest.raises(error, match=message):
        Topology(sparse, None, 0).rewire(_Bad(how=how), Progress(100, 1000, 10))


def test_scores_of_a_wrong_shape_are_refused():
    _, sparse = network("masked")
    with pytest.raises(PluginError, match=r"layer '0': scores must have shape \(43,\), got \(3,\)"):
        Topology(sparse, None, 0).prune({"0": torch.ones(3), "3": torch.ones(18)}, 0.1)


def test_random_absent_is_uniform_over_absent_sites():
    flat = torch.tensor([0, 1, 2, 7])
    conn = Connections("x", (2, 4), flat // 4, flat % 4, torch.zeros(4))
    counts = torch.zeros(8)
    from sparsefleet.rng import Rng

    for i in range(4000):
        sites = conn.random_absent(1, Rng(i))
        counts[sites[0] * 4 + sites[1]] += 1
    assert counts[flat].sum() == 0
    assert (counts[3:7] - 1000).abs().max() < 120
    assert sorted((conn.random_absent(4)[0] * 4 + conn.random_absent(4)[1]).tolist()) == [3, 4, 5, 6]
    with pytest.raises(PluginError, match="only 4 sites are absent"):
        conn.random_absent(5)
