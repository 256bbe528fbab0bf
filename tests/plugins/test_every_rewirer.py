"""What every first-party rewirer promises, whatever it does; no list of names here.

Counts, first weights, optimizer slots, absent weights, determinism, sizes and resuming: a method's own test is about its own rule.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_net import examples, sparse_net
from sparsefleet_plugins.connectivity.fixed_fan_in import FixedFanIn
from sparsefleet_plugins.connectivity.random import RandomConnectivity
from two_parts import assert_same_network, in_two_parts

from sparsefleet import Connections, Progress, Rewirer, Rng
from sparsefleet.connections import DenseValues
from sparsefleet.nn.topology import Topology
from sparsefleet.registry import Registry, catalog
from sparsefleet.sparsity.fitted import fitted_nnz
from sparsefleet.trial import files
from sparsefleet.trial.run import run_trial
from sparsefleet.trial.spec import PluginRef

REGISTRY = Registry(catalog())
NAMES = [entry.name for entry in catalog().entries if entry.family == "rewirer" and entry.distribution == "sparsefleet"]
OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1),
    "sgd-momentum": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.01, amsgrad=True),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.01),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=0.01, momentum=0.5, centered=True),
}
FIRST_WEIGHT = {"deep-r": 1e-12, "soft-deep-r": None}
"""By magnitude, where it is not zero; None: the site's own parameter."""
STEPS, EPOCH = 40, 4


def quick(name, **params) -> Rewirer:
    """The rewirer, acting often enough for a short test."""
    kind = REGISTRY.plugin_class("rewirer", name)
    return kind(**{**({"every": 2} if "every" in kind.model_fields else {}), **params})


def storages(rewirer):
    if rewirer.needs_dense:
        return ["masked"]
    return ["masked", "csr"] if rewirer.redistributes else ["masked", "csr", "fixed-fan-in"]


def density_of(rewirer, otherwise):
    """What a method that keeps n of m must have."""
    n, m = (getattr(rewirer, one) for one in rewirer.n_of_m_by) if rewirer.n_of_m_by else (otherwise, 1)
    return n / m


def cases():
    for name in NAMES:
        rewirer = quick(name)
        for storage in storages(rewirer):
            for optimizer in ["sgd"] if rewirer.needs_plain_sgd else ["sgd-momentum", "adam", "adamw", "rmsprop"]:
                yield pytest.param(name, storage, optimizer, id=f"{name}-{storage}-{optimizer}")


class Watched(Topology):
    """Checks every change of a layer against what the method asked for."""

    n_grown = 0

    def change(self, name, keep, new, rewirer=None, old=None):
        module = self.modules[name]
        before = self._snapshot(module)
        flat = new[0] * module.matrix_shape[1] + new[1]
        super_change = super().change(name, keep, new, rewirer, old)
        after = self._snapshot(module)
        kept, grown = set(before["site"][keep].tolist()), set(flat.tolist())
        assert after["site"].tolist() == sorted(kept | grown)
        assert len(kept) + len(grown) == len(after["site"])
        at = {site: i for i, site in enumerate(before["site"].tolist())}
        for i, site in enumerate(after["site"].tolist()):
            stays = site in kept or (rewirer.keeps_regrown and site in at)
            for key in after.keys() - {"site"}:
                value = after[key][i]
                if stays:
                    assert value == before[key][at[site]], f"{key} of a kept connection"
                elif key != "weight":
                    assert value == 0, f"slot {key} of a grown connection"
                elif not rewirer.revives and FIRST_WEIGHT.get(rewirer.name, 0) is not None:
                    assert abs(value) == FIRST_WEIGHT.get(rewirer.name, 0), "the first weight of a grown connection"
        self.n_grown += len(grown)
        return super_change

    def _snapshot(self, module):
        found = {"site": module.flat_sites().clone(), "weight": module.values().clone()}
        for key, slot in self.optimizer.state.get(module.weight_parameter, {}).items():
            if isinstance(slot, torch.Tensor) and slot.dim():
                stored = slot.reshape(-1)
                found[key] = (stored[found["site"]] if module.execution == "masked_dense" else stored).clone()
        return found


def built(rewirer, storage, optimizer="sgd", *, density=0.5):
    """Network, sparse modules and their topology."""

    def balanced(shape):
        return FixedFanIn().draw(shape, fitted_nnz(round(density * shape[0] * shape[1]), shape, "constant-fan-in", 1), Rng("fan-in", shape))

    sites = balanced if storage == "fixed-fan-in" else None
    network, modules = sparse_net(layer=REGISTRY.build("layer", PluginRef(name=storage)), sites=sites, density=density)
    topology = Watched(modules, OPTIMIZERS[optimizer](network.parameters()), seed=0)
    topology.start(rewirer)
    return network, modules, topology


def trained(rewirer, network, modules, topology, steps=STEPS):
    """Yields after every step, as a trial makes it."""
    x, y = examples()
    for step in range(steps):
        before, after = Progress(step, steps, EPOCH), Progress(step + 1, steps, EPOCH)
        in_place = rewirer.replaces_step and rewirer.due(before)
        topology.watch_absent(rewirer.needs_dense or rewirer.needs_absent_grad)
        topology.optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(network(x), y).backward()
        if not in_place:
            topology.optimizer.step()
            topology.enforce()
            topology.on_step(rewirer, topology.optimizer.param_groups[0]["lr"], step)
        if in_place or (not rewirer.replaces_step and rewirer.due(after)):
            topology.rewire(rewirer, before if in_place else after)
        yield step + 1


@pytest.mark.parametrize(("name", "storage", "optimizer"), list(cases()))
def test_counts_weights_and_slots(name, storage, optimizer):
    rewirer = quick(name)
    network, modules, topology = built(rewirer, storage, optimizer, density=density_of(rewirer, 0.5))
    first = [module.nnz for module in modules.values()]
    for _ in trained(rewirer, network, modules, topology):
        if not rewirer.varies_nnz:
            assert topology.nnz == sum(first)
        if not (rewirer.varies_nnz or rewirer.redistributes):
            assert [module.nnz for module in modules.values()] == first
        for module in modules.values():
            if storage == "masked" and not rewirer.revives:
                assert bool((module.weight_parameter.detach()[~module.mask] == 0).all())
    assert topology.n_grown > 0 or name == "static"


@pytest.mark.parametrize("name", NAMES)
def test_nearly_empty_and_full_layers(name):
    """One connection, all but one, and all: nothing is counted wrong, and nothing raises."""
    for n_of in (lambda n: 1, lambda n: n - 1, lambda n: n):
        rewirer = quick(name)
        drawn = lambda shape, n_of=n_of: RandomConnectivity().draw(shape, n_of(shape[0] * shape[1]), Rng("few", shape))  # noqa: E731
        network, modules = sparse_net(sites=drawn)
        topology = Watched(modules, OPTIMIZERS["sgd"](network.parameters()), seed=0)
        topology.start(rewirer)
        first = [module.nnz for module in modules.values()]
        for _ in trained(rewirer, network, modules, topology, steps=12):
            assert all(0 <= module.nnz <= module.matrix_shape[0] * module.matrix_shape[1] for module in modules.values())
            assert rewirer.varies_nnz or topology.nnz == sum(first)
            assert rewirer.varies_nnz or rewirer.redistributes or [module.nnz for module in modules.values()] == first


def digest(name):
    """What a short training ends with."""
    sha, rewirer = hashlib.sha256(), quick(name)
    for storage in storages(rewirer):
        network, modules, topology = built(rewirer, storage)
        for _ in trained(rewirer, network, modules, topology, steps=12):
            pass
        for module in modules.values():
            sha.update(module.flat_sites().numpy().tobytes() + module.values().numpy().tobytes())
    return sha.hexdigest()


def test_processes_with_different_hash_seeds_agree():
    """A port of RigL seeds its draws with ``hash(name)``, which changes from process to process."""
    here = Path(__file__).parent
    found = []
    for seed in ("1", "2"):
        code = "import json, test_every_rewirer as t; print(json.dumps({name: t.digest(name) for name in t.NAMES}))"
        paths = os.pathsep.join(map(str, (here, here.parent / "contract")))
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    assert found[0] == found[1]
    assert len(set(found[0].values())) == len(NAMES)  # the digests tell methods apart


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_more_than_2_to_the_24_sites(name):
    """``torch.multinomial`` and ``torch.quantile`` end there."""
    shape, nnz, rewirer = (4097, 4100), 50_000, quick(name)
    n_sites = shape[0] * shape[1]
    assert n_sites > 2**24
    flat = Rng("sites").distinct(nnz, n_sites)
    weight, gradient = Rng("w").at(flat).float() - 0.5, (Rng("g").at(torch.arange(n_sites)).float() - 0.5).view(shape)
    conn = Connections("layer", shape, flat // shape[1], flat % shape[1], weight, grad=gradient.view(-1)[flat])
    seen = lambda present: Connections("layer", shape, present // shape[1], present % shape[1], weight[:0])  # noqa: E731
    conn.best_absent_by_gradient = lambda present, k: seen(present).best_absent(k, gradient)
    conn.best_absent_per_row_by_gradient = lambda present, counts: seen(present).best_absent_per_row(counts, gradient)
    if rewirer.needs_dense:
        stored = torch.zeros(n_sites).index_copy_(0, flat, weight).view(shape)
        conn.dense = DenseValues(stored, gradient, {})
    conn.state = dict(rewirer.initial_state(conn))
    rewirer.on_step(conn, 0.1, Rng("step"))
    target = rewirer.redistribute({"layer": conn}, Progress(50, 100, 10)) or {"layer": nnz}
    keep, new = rewirer.update(conn, Progress(50, 100, 10), Rng("update"), target["layer"])
    grown = new[0] * shape[1] + new[1]
    assert rewirer.varies_nnz or int(keep.sum()) + grown.numel() == nnz
    assert torch.unique(torch.cat([flat[keep], grown])).numel() == int(keep.sum()) + grown.numel()


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_trial_is_bit_equal_to_an_uninterrupted_one(digits_request, monkeypatch, name):
    params = {"every": 3} if "every" in REGISTRY.plugin_class("rewirer", name).model_fields else {}
    spec = {
        "layer": {"name": "masked" if quick(name).needs_dense else "csr"},
        "density": density_of(quick(name), 0.2),
        "method": {"rewirer": {"name": name, "params": params}},
        "optimizer": {"kind": "sgd", "lr": 0.1} if quick(name).needs_plain_sgd else {"kind": "adam", "lr": 0.003},
    }
    whole = digits_request("whole", **spec)
    run_trial(whole)
    for stop_at in (7, 31):
        parts = digits_request(f"parts-{stop_at}", checkpoint_every_s=1e-9, **spec)
        in_two_parts(monkeypatch, parts, stop_at)
        assert_same_network(parts, whole)
        a, b = (json.loads((request.workdir / files.RECORD).read_text()) for request in (parts, whole))
        assert a["curves"] == b["curves"]
