"""The Sparsifier in a loop of one's own does what a trial does, resumes bit-equal, and refuses what cannot run."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import sparsefleet.nn as sfnn
from sparsefleet.errors import UserError
from sparsefleet.registry import Registry, catalog
from sparsefleet.sparsity.vocabulary import Cubic
from sparsefleet.trial import files
from sparsefleet.trial.build import build_network
from sparsefleet.trial.data import batches, load_splits, steps_per_epoch
from sparsefleet.trial.masks import load_masks
from sparsefleet.trial.run import run_trial
from sparsefleet.trial.spec import PluginRef, TrialSpec

REGISTRY = Registry(catalog())


def plugin(family, name, **params):
    return REGISTRY.build(family, PluginRef(name=name, params=params))


METHODS = {
    "set": {"rewirer": ("set", {})},
    "rigl": {"rewirer": ("rigl", {"every": 5})},
    "deep-r": {"rewirer": ("deep-r", {"alpha": 0.01})},
    "magnitude+cubic": {"pruner": ("magnitude", {}), "schedule": Cubic(every=4)},
}


@pytest.mark.parametrize("layer", ["csr", "fixed-fan-in", "masked"])
@pytest.mark.parametrize("name", METHODS)
def test_it_gives_the_masks_and_weights_of_a_trial(digits_request, name, layer):
    chosen = METHODS[name]
    family = next(key for key in ("pruner", "rewirer") if key in chosen)
    kind, params = chosen[family]
    schedule = chosen.get("schedule")
    method = {family: {"name": kind, "params": params}, **({"schedule": schedule.model_dump()} if schedule else {})}
    request = digits_request(
        layer={"name": layer}, density=0.2, method=method, optimizer={"kind": "sgd", "lr": 0.1}, train={"epochs": 3, "batch_size": 64}
    )
    record = run_trial(request)
    assert record.state.value == "SUCCEEDED", record.reason

    spec = request.spec
    plain = TrialSpec.model_validate({**spec.to_json(), "method": {}, "density": 1.0, "layer": {"name": "dense"}})
    model = build_network(plain).module
    splits = load_splits(plugin("dataset", "digits"), request, torch.float32, REGISTRY.catalog)
    per_epoch = steps_per_epoch(splits.train.x.shape[0], 64, False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = sfnn.Sparsifier(
        model,
        optimizer,
        density=0.2,
        total_steps=3 * per_epoch,
        steps_per_epoch=per_epoch,
        layer=layer,
        schedule=schedule,
        seed=spec.seed,
        **{family: plugin(family, kind, **params)},
    )
    first = sparsifier.masks()
    for epoch in range(3):
        for x, y in batches(splits.train, batch_size=64, n_batches=per_epoch, seed=spec.seed, epoch=epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            sparsifier.step()
    sparsifier.finish()

    masks = load_masks(request.workdir)
    found = sparsifier.masks()
    assert found.keys() == masks.keys()
    for key, sites in found.items():
        n_in = sparsifier.modules[key].matrix_shape[1]
        assert torch.equal(sites[0] * n_in + sites[1], masks[key].flat)
    assert any(not torch.equal(first[key], found[key]) for key in first)
    trained = load_file(request.workdir / files.MODEL)
    own = model.state_dict()
    assert own.keys() == trained.keys()
    for key, value in trained.items():
        assert torch.equal(own[key], value), key


def loop(model, sparsifier, steps, first=0):
    gen = torch.Generator().manual_seed(4)
    data = [(torch.randn(16, 12, generator=gen), torch.randint(8, (16,), generator=gen)) for _ in range(first + steps)]
    for x, y in data[first:]:
        sparsifier.optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        sparsifier.step()


def fresh(method, layer, optimizer="Adam"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 8))
    if optimizer == "Adam":
        optim = torch.optim.Adam(model.parameters(), lr=0.01)
    else:
        optim = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, sfnn.Sparsifier(model, optim, density=0.25, total_steps=40, steps_per_epoch=5, layer=layer, **method)


RUNS = [
    ({"rewirer": "set"}, "Adam"),
    ({"rewirer": plugin("rewirer", "rigl", every=3)}, "Adam"),
    ({"rewirer": "deep-r"}, "SGD"),
    ({"rewirer": "static"}, "Adam"),
    ({"pruner": "magnitude", "schedule": Cubic(every=4)}, "Adam"),
    ({"pruner": "random", "schedule": Cubic(every=4)}, "Adam"),
]
LAYERS = [
    entry.name
    for entry in catalog().entries
    if entry.family == "layer" and entry.facts["topology"] != "all" and "cpu" in entry.facts["devices"]
]


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "layer", [pytest.param(name, marks=pytest.mark.torch_sparse) if name == "torch-sparse" else name for name in LAYERS]
)
@pytest.mark.parametrize(("method", "optimizer"), RUNS)
def test_every_method_runs_on_every_layer_or_says_why_not(method, optimizer, layer):
    if layer == "torch-sparse":
        pytest.importorskip("torch_sparse")
    if layer == "block" and method == {"rewirer": "deep-r"}:
        with pytest.raises(UserError, match="deep-r decides about each connection by itself; layer 'block' holds whole blocks"):
            fresh(method, layer, optimizer)
        return
    model, sparsifier = fresh(method, layer, optimizer)
    first = sparsifier.masks()
    loop(model, sparsifier, 40)
    sparsifier.finish()
    assert {name: module.nnz for name, module in sparsifier.modules.items()} == {"0": 48, "3": 32}
    moved = any(not torch.equal(first[name], sites) for name, sites in sparsifier.masks().items())
    assert moved == ("static" not in method.values())
    for module in sparsifier.modules.values():
        rows = module.flat_sites() // module.matrix_shape[1]
        if layer == "fixed-fan-in":
            assert torch.bincount(rows).unique().numel() == 1
        if layer == "block":
            tiles = module.connections().tiles()
            assert tiles.numel() * 16 == module.nnz


@pytest.mark.parametrize("layer", ["csr", "fixed-fan-in", "masked", "block"])
@pytest.mark.parametrize(("method", "optimizer"), [run for run in RUNS if "static" not in run[0].values()])
def test_it_resumes_bit_equal(method, optimizer, layer):
    if layer == "block" and method == {"rewirer": "deep-r"}:
        return
    whole, through = fresh(method, layer, optimizer)
    loop(whole, through, 23)
    half, stopped = fresh(method, layer, optimizer)
    loop(half, stopped, 11)
    saved = [copy.deepcopy(part.state_dict()) for part in (half, stopped.optimizer, stopped)]
    other, resumed = fresh(method, layer, optimizer)
    for part, state in zip((other, resumed.optimizer, resumed), saved, strict=True):
        part.load_state_dict(state)
    loop(other, resumed, 12, first=11)
    assert whole.state_dict().keys() == other.state_dict().keys()
    for key, value in whole.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


@pytest.mark.parametrize("storage", ["csr", "fixed-fan-in", "block", "masked"])
def test_optimizer_slots_follow_a_model_that_has_trained(storage):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x, y = torch.randn(16, 12), torch.randint(8, (16,))
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    weight, bias = model[0].weight, model[0].bias
    before, bias_before = optimizer.state[weight]["exp_avg"].clone(), optimizer.state[bias]["exp_avg"].clone()
    sparsifier = sfnn.Sparsifier(model, optimizer, density=0.25, total_steps=10, rewirer="set", layer=storage)
    layer = model[0]
    assert torch.equal(layer.values(), weight.detach().view(-1)[layer.flat_sites()])
    slot = optimizer.state[layer.weight_parameter]["exp_avg"]
    assert torch.equal(slot, layer.as_stored(before.view(-1)[layer.flat_sites()]))
    dense = torch.zeros(16, 12)  # by hand: what each storage says that a slot's entries belong to
    layer.write_values(torch.arange(1.0, layer.nnz + 1))
    of = layer.weight_parameter.detach().reshape(-1)
    dense.view(-1)[layer.flat_sites()[of[of > 0].long() - 1]] = slot.reshape(-1)[of > 0]
    assert torch.equal(dense.view(-1)[layer.flat_sites()], before.view(-1)[layer.flat_sites()])
    assert torch.equal(optimizer.state[layer.bias]["exp_avg"], bias_before)
    assert weight not in optimizer.state
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in model.parameters()}
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    sparsifier.step()


def test_layers_that_are_sparse_already_are_rewired_as_they_are():
    model = nn.Sequential(sfnn.FixedFanInLinear(12, 16, fan_in=3, seed=1), nn.ReLU(), sfnn.CsrLinear(16, 8, 0.25, seed=2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = sfnn.Sparsifier(model, optimizer, density=0.25, total_steps=40, steps_per_epoch=5, rewirer="set", seed=3)
    parameters = [layer.values_ for layer in (model[0], model[2])]
    storage = [parameter.data_ptr() for parameter in parameters]
    loop(model, sparsifier, 20)
    assert [model[0].values_, model[2].values_] == parameters
    assert [parameter.data_ptr() for parameter in parameters] == storage  # in place
    assert model[0].fan_in == 3


def test_what_cannot_run_is_refused():
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU())
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for arguments, message in [
        ({}, "a pruner or a rewirer"),
        ({"pruner": "magnitude", "rewirer": "set"}, "not both"),
        ({"rewirer": "deep-r"}, "defined for SGD without momentum"),
        ({"rewirer": "sett"}, "sett"),
        ({"rewirer": "set", "layer": "dense"}, "stores every weight"),
        ({"rewirer": "set", "keep_dense": ["0"]}, "no module that layer 'csr' can store"),
    ]:
        with pytest.raises(UserError, match=message):
            sfnn.Sparsifier(model, sgd, density=0.25, total_steps=10, **arguments)
    early = sfnn.Sparsifier(model, sgd, density=0.25, total_steps=10, pruner="magnitude", schedule=Cubic(every=4))
    with pytest.raises(UserError, match="pruning ends at step 8, and 0 are done"):
        early.finish()
    second = nn.Sequential(nn.Linear(12, 16))
    other = sfnn.Sparsifier(second, torch.optim.SGD(second.parameters(), lr=0.1), density=0.25, total_steps=10, rewirer="set")
    with pytest.raises(UserError, match="the state dict has method 'magnitude', this Sparsifier 'set'"):
        other.load_state_dict(early.state_dict())
