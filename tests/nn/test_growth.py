"""What growing by gradient sees, in every storage and however gradients are gathered; and that it stops and goes on."""

import copy

import pytest
import torch
from torch import nn

from sparsefleet import Rewirer
from sparsefleet.errors import UserError
from sparsefleet.nn import CsrLinear, MaskedModule, Sparsifier
from sparsefleet.registry import Registry
from sparsefleet.trial.record import State
from sparsefleet.trial.run import run_trial
from sparsefleet.trial.spec import PluginRef


def rigl(every):
    return Registry().build("rewirer", PluginRef(name="rigl", params={"every": every}))


class Smoothed(Rewirer):
    """Grows where a smoothed dense gradient is largest; counts in ``age`` how many steps a connection is there."""

    name = "test-smoothed"
    needs_dense = True
    every: int = 3

    def initial_state(self, conn):
        return {"age": torch.zeros(conn.nnz)}

    def on_step(self, conn, lr, rng):
        mean = conn.dense.state.setdefault("mean", torch.zeros_like(conn.dense.weight))
        mean.mul_(0.9).add_(conn.dense.grad)
        conn.state["age"] = conn.state["age"] + 1

    def grow(self, conn, k, rng):
        return conn.best_absent(k, conn.dense.state["mean"])


def masks_after(model, sparsifier, n_steps, n_parts, first=0):
    gen = torch.Generator().manual_seed(5)
    for step in range(first + n_steps):
        x, y = torch.randn(48, 20, generator=gen), torch.randint(5, (48,), generator=gen)
        if step < first:
            continue
        sparsifier.optimizer.zero_grad()
        for part in range(n_parts):
            of = slice(part * 48 // n_parts, (part + 1) * 48 // n_parts)
            (nn.functional.cross_entropy(model(x[of]), y[of]) / n_parts).backward()
        sparsifier.step()
    return sparsifier.masks()


def small(rewirer, layer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, Sparsifier(model, optimizer, rewirer=rewirer, density=0.3, total_steps=40, layer=layer)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("make", "layer"), [(lambda: rigl(3), "csr"), (lambda: rigl(3), "masked"), (Smoothed, "masked")])
def test_accumulated_gradients_grow_as_those_of_one_batch(double, make, layer):
    model, sparsifier = small(make(), layer)
    first = sparsifier.masks()
    whole = masks_after(model, sparsifier, 9, 1)
    parts = masks_after(*small(make(), layer), 9, 3)
    assert not torch.equal(first["0"], whole["0"])
    for name, sites in whole.items():
        assert torch.equal(parts[name], sites)


def test_a_shared_module_grows_by_all_its_uses_in_every_storage(double):
    csr = CsrLinear(6, 6, 0.3, seed=0)
    masked = MaskedModule.from_connections(csr.connections(), csr.bias, template=nn.Linear(6, 6, device="meta"))
    x = torch.randn(3, 6)
    for layer in (csr, masked):
        layer.watch_absent(True)
        layer(layer(x)).sum().backward()
    assert torch.equal(csr.best_absent(csr.flat_sites(), 6), masked.best_absent(csr.flat_sites(), 6))


def test_watching_again_forgets(double):
    csr = CsrLinear(6, 6, 0.3, seed=0)
    masked = MaskedModule.from_connections(csr.connections(), csr.bias, template=nn.Linear(6, 6, device="meta"))
    for layer in (csr, masked):
        found = []
        for before in (True, False):
            gen = torch.Generator().manual_seed(0)
            x, y = torch.randn(3, 6, generator=gen), torch.randn(3, 6, generator=gen)
            if before:
                layer.watch_absent(True)
                layer(100 * y).square().sum().backward()
            layer.watch_absent(True)
            layer(x).square().sum().backward()
            found.append(layer.best_absent(layer.flat_sites(), 6))
        assert torch.equal(*found)
        layer.watch_absent(True)
        with pytest.raises(RuntimeError, match="no watched backward pass"):
            layer.best_absent(layer.flat_sites(), 6)


def test_an_input_that_is_changed_in_place_is_refused_where_it_would_count():
    x = torch.randn(5, 20)
    for copied in (False, True):
        layer = CsrLinear(20, 30, 0.2, seed=0)
        layer.watch_absent(True)
        out = layer(x.clone() if copied else x)
        x.add_(1)
        out.square().sum().backward()
        if copied:
            assert layer.best_absent(layer.flat_sites(), 4).shape == (2, 4)
        else:
            with pytest.raises(UserError, match="changed in place"):
                layer.best_absent(layer.flat_sites(), 4)
    layer.watch_absent(True)  # what was changed before the pass is the input
    layer(x).square().sum().backward()
    assert layer.best_absent(layer.flat_sites(), 4).shape == (2, 4)


def test_a_copy_has_neither_gradients_nor_watched_passes():
    layer = CsrLinear(20, 30, 0.2, seed=0)
    layer.watch_absent(True)
    layer(torch.randn(5, 20)).sum().backward()
    twin = copy.deepcopy(layer)
    assert twin.values_.grad is None
    with pytest.raises(RuntimeError, match="no watched backward pass"):
        twin.best_absent(twin.flat_sites(), 4)


def test_a_trial_shows_the_dense_gradient_of_its_step_alone(digits_request, plugin_distribution):
    source = """
        import torch
        from sparsefleet import Rewirer, hookimpl
        class Compares(Rewirer):
            name = "rn-compares"
            needs_dense = True
            every: int = 3
            def on_step(self, conn, lr, rng):
                if not torch.equal(conn.dense.grad.reshape(-1)[conn.flat], conn.grad):
                    raise ValueError("the dense gradient is another than that of the connections")
        @hookimpl
        def sparsefleet_rewirers():
            return [Compares]
    """
    plugin_distribution("dist-compares", {"rn_compares": source})
    method = {"rewirer": {"name": "rn-compares"}}
    record = run_trial(digits_request(layer={"name": "masked"}, density=0.2, method=method, train={"epochs": 1, "batch_size": 256}))
    assert record.state is State.SUCCEEDED, record.reason


# Stopping and going on


def test_dense_state_is_part_of_what_is_resumed(double):
    wanted = masks_after(*small(Smoothed(), "masked"), 11, 1)
    half, stopped = small(Smoothed(), "masked")
    masks_after(half, stopped, 5, 1)
    assert all("mean" in module.dense_state for module in stopped.modules.values())
    saved = [copy.deepcopy(part.state_dict()) for part in (half, stopped.optimizer, stopped)]
    for keeps, same in ((True, True), (False, False)):
        model, resumed = small(Smoothed(), "masked")
        if not keeps:
            saved[2]["dense_state"] = {name: {} for name in resumed.modules}
        for part, state in zip((model, resumed.optimizer, resumed), saved, strict=True):
            part.load_state_dict(state)
        found = masks_after(model, resumed, 6, 1, first=5)
        assert all(torch.equal(found[name], sites) for name, sites in wanted.items()) == same


def test_the_model_is_loaded_before_its_sparsifier(double):
    model, sparsifier = small(Smoothed(), "masked")
    masks_after(model, sparsifier, 7, 1)
    other, resumed = small(Smoothed(), "masked")
    with pytest.raises(UserError, match=r"layer '0' has other connections.*\n.*load the model's state dict first"):
        resumed.load_state_dict(sparsifier.state_dict())
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(sparsifier.state_dict())
    assert torch.equal(resumed.modules["0"].method_state["age"], sparsifier.modules["0"].method_state["age"])


@pytest.mark.parametrize("storage", ["csr", "fixed-fan-in", "block", "masked"])
def test_other_connections_do_not_inherit_state_and_passes(storage):
    def model(seed):
        made = nn.Sequential(nn.Linear(12, 8))
        optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
        Sparsifier(made, optimizer, rewirer="set", layer=storage, seed=seed, density=0.5, total_steps=10)
        return made[0]

    one, same, other = model(1), model(1), model(2)
    assert not torch.equal(one.flat_sites(), other.flat_sites())
    for loaded, is_kept in ((same, True), (other, False)):
        one.method_state = {"age": torch.arange(one.nnz)}
        one.watch_absent(True)
        one(torch.randn(4, 12)).sum().backward()
        one.load_state_dict(loaded.state_dict())
        assert bool(one.method_state) == is_kept
        if is_kept:
            assert one.best_absent(one.flat_sites(), 16).shape == (2, 16)
        else:
            with pytest.raises(RuntimeError, match="no watched backward pass"):
                one.best_absent(one.flat_sites(), 16)
