"""What a Sparsifier finds in models of one's own, and what becomes of it: it works, or a sentence says why not."""

import copy

import pytest
import torch
from torch import nn

from sparsefleet import Connectivity
from sparsefleet.errors import UserError
from sparsefleet.nn import CsrLinear, FixedFanInLinear, LayerNorm, Sparsifier
from sparsefleet.registry import Registry


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def rewired(model, **options):
    return Sparsifier(model, sgd(model), **{"rewirer": "set", "density": 0.3, "total_steps": 10, **options})


def in_optimizer(model, optimizer):
    return {id(p) for p in model.parameters()} == {id(p) for group in optimizer.param_groups for p in group["params"]}


def backward(model, x):
    model.zero_grad()
    model(x).square().mean().backward()


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(12, 12)
        self.again = self.first

    def forward(self, x):
        return self.again(self.first(x).relu())


@pytest.mark.parametrize("method", ["rewirer", "pruner"])
def test_a_module_in_several_places_is_replaced_in_all(method):
    linear = nn.Linear(12, 12)
    for model, places in ((nn.Sequential(linear, nn.ReLU(), linear, nn.Linear(12, 3)), ("0", "2")), (Twice(), ("first", "again"))):
        name = {"rewirer": "set", "pruner": "magnitude"}[method]
        sparsifier = Sparsifier(model, sgd(model), density=0.25, total_steps=1, **{method: name})
        for _ in range(2):
            one, other = (model.get_submodule(place) for place in places)
            assert one is other
            assert one is sparsifier.modules[places[0]]
            assert places[1] not in sparsifier.modules
            assert in_optimizer(model, sparsifier.optimizer)
            assert one.nnz == 36
            backward(model, torch.randn(5, 12))
            sparsifier.step()
            sparsifier.finish()
        assert isinstance(one, CsrLinear)


def test_either_name_keeps_a_module_dense():
    for name in ("first", "again"):
        with pytest.raises(UserError, match="no module that layer 'csr' can store"):
            rewired(Twice(), keep_dense=[name])


def test_a_shared_bias_is_refused():
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12))
    model[1].bias = model[0].bias
    with pytest.raises(UserError, match=r"0\.bias is shared with another module\n.*keep_dense=\['0', '1'\]"):
        rewired(model)
    model = nn.Sequential(nn.Linear(12, 12), nn.LayerNorm(12))
    model[1].bias = model[0].bias
    with pytest.raises(UserError, match=r"0\.bias is shared with another module\n.*keep_dense=\['0'\]"):
        rewired(model)


def test_what_the_final_layer_cannot_store_stays_masked():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 6))
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, optimizer, pruner="magnitude", density=0.5, total_steps=2, layer="fixed-fan-in")
    x = torch.randn(2, 3, 4, 4)
    for _ in range(2):
        backward(model, x)
        sparsifier.step()
    wanted = model(x).detach()
    assert sparsifier.finish() is model
    assert [type(module).__name__ for module in model] == ["MaskedModule", "ReLU", "Flatten", "FixedFanInLinear"]
    torch.testing.assert_close(model(x), wanted, rtol=1e-5, atol=1e-6)
    assert list(sparsifier.modules) == ["0", "3"]
    assert [module.nnz for module in sparsifier.modules.values()] == [108, 384]
    assert in_optimizer(model, optimizer)
    backward(model, x)
    sparsifier.step()


def test_a_convolution_moves_to_a_layer_that_stores_it():
    masked = Registry().plugin_class("layer", "masked")

    class Other(masked):
        name = "test-other"
        stores_dense = False  # one that does is trained on from the start

    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, stride=2, bias=False))
    sparsifier = Sparsifier(model, sgd(model), pruner="magnitude", density=0.5, total_steps=1, layer=Other())
    x = torch.randn(2, 3, 4, 4)
    backward(model, x)
    sparsifier.step()
    before, wanted = model[0], model(x).detach()
    sparsifier.finish()
    assert model[0] is not before
    assert torch.equal(model(x), wanted)


class OnlyTheFirst(Connectivity):
    name = "test-only-the-first"

    def draw(self, shape, nnz, rng):
        if shape[0] == 3:
            raise ValueError("no connections for this layer")
        flat = rng.distinct(nnz, shape[0] * shape[1])
        return torch.stack([flat // shape[1], flat % shape[1]])


def test_a_failure_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    parts, parameters, optimizer = list(model), list(model.parameters()), sgd(model)
    with pytest.raises(ValueError, match="no connections for this layer"):
        Sparsifier(model, optimizer, rewirer="set", density=0.5, total_steps=9, connectivity=OnlyTheFirst())
    assert list(model) == parts
    assert optimizer.param_groups[0]["params"] == parameters


HOOKS = {
    "forward": lambda module: module.register_forward_hook(lambda *_: None),
    "forward_pre": lambda module: module.register_forward_pre_hook(lambda *_: None),
    "backward": lambda module: module.register_full_backward_hook(lambda *_: None),
    "state_dict": lambda module: module.register_state_dict_post_hook(lambda *_: None),
    "gradient": lambda module: module.weight.register_hook(lambda _: None),
    "accumulated": lambda module: module.bias.register_post_accumulate_grad_hook(lambda _: None),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_are_refused_and_not_lost(kind):
    model = nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 3))
    handle = HOOKS[kind](model[1])
    with pytest.raises(UserError, match="1 has hooks"):
        rewired(model)
    assert [type(module) for module in model] == [nn.Linear, nn.Linear]
    assert list(rewired(copy.deepcopy(model), keep_dense=["1"]).modules) == ["0"]
    handle.remove()
    rewired(model)


def test_hooks_on_what_finish_replaces_are_refused():
    model = nn.Sequential(nn.Linear(12, 8))
    sparsifier = Sparsifier(model, sgd(model), pruner="magnitude", density=0.5, total_steps=1)
    handle = model[0].register_forward_hook(lambda *_: None)
    backward(model, torch.randn(5, 12))
    sparsifier.step()
    with pytest.raises(UserError, match=r"0 has hooks.*\n.*after finish"):
        sparsifier.finish()
    handle.remove()
    assert isinstance(sparsifier.finish()[0], CsrLinear)


def test_a_norm_or_relu_with_hooks_is_not_fused():
    for hooked, wanted in ((1, [nn.LayerNorm, nn.ReLU]), (2, [LayerNorm, nn.ReLU]), (0, [LayerNorm, nn.Identity])):
        model = nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.ReLU())
        seen = []
        if hooked:
            model[hooked].register_forward_hook(lambda module, x, out, seen=seen: seen.append(out.min()))
        rewired(model)
        out = model(torch.randn(6, 12))
        assert [type(module) for module in model[1:]] == wanted
        assert len(seen) == (hooked > 0)
        assert all((value < 0) == (hooked == 1) for value in seen)
        assert bool((out >= 0).all())


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_a_transformer_encoder_evaluates_as_it_trains(whole):
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(model, 2) if whole else nn.Sequential(model)
    rewired(model, density=0.5)
    x = torch.randn(2, 5, 12)
    options = {"src_key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2])} if whole else {}
    wanted = model(x, **options).detach()
    model.eval()
    with torch.no_grad():
        found = model(x, **options)
    torch.testing.assert_close(found[:, :3], wanted[:, :3], rtol=1e-5, atol=1e-6)


def test_frozen_parameters_stay_frozen():
    for method, layer in (({"rewirer": "set"}, "csr"), ({"pruner": "magnitude"}, "fixed-fan-in")):
        model = nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 3))
        model[0].weight.requires_grad_(False)
        model[1].bias.requires_grad_(False)
        sparsifier = Sparsifier(model, sgd(model), density=0.5, total_steps=1, layer=layer, **method)
        for _ in range(2):
            frozen = [not p.requires_grad for m in model for p in (m.weight_parameter, m.bias)]
            assert frozen == [True, False, False, True]
            backward(model, torch.randn(5, 12))
            sparsifier.step()
            sparsifier.finish()


@pytest.mark.parametrize("storage", ["csr", "masked"])
@pytest.mark.parametrize("how", ["deepcopy", "torch.save"])
def test_a_model_copied_with_its_optimizer_is_trained_by_it(storage, how, tmp_path):
    model = nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 3))
    sparsifier = rewired(model, layer=storage)
    if storage == "masked":  # absent weights are kept as they are
        with torch.no_grad():
            model[0].weight_parameter.add_(1)
    backward(model, torch.randn(5, 12))
    sparsifier.optimizer.step()
    if how == "deepcopy":
        twin, optimizer = copy.deepcopy((model, sparsifier.optimizer))
    else:
        torch.save((model, sparsifier.optimizer), tmp_path / "both")
        twin, optimizer = torch.load(tmp_path / "both", weights_only=False)
    assert in_optimizer(twin, optimizer)
    assert optimizer.state.keys() == set(twin.parameters())
    before = model[0].weight_parameter.detach().clone()
    assert torch.equal(twin[0].weight_parameter, before)
    backward(twin, torch.randn(5, 12))
    optimizer.step()
    assert not torch.equal(twin[0].weight_parameter, before)
    assert torch.equal(model[0].weight_parameter, before)


# Slots of other optimizers


@pytest.mark.parametrize("layer", ["csr", "fixed-fan-in", "block", "masked"])
def test_grown_connections_step_at_the_learning_rate_under_rprop(layer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.Rprop([{"params": model[2].parameters(), "lr": 0.5}, {"params": model[0].parameters()}], lr=0.01)
    sparsifier = Sparsifier(model, optimizer, rewirer="set", layer=layer, density=0.5, total_steps=40, steps_per_epoch=3)
    x = torch.randn(64, 12)
    for step in range(3):
        before = {name: module.flat_sites() for name, module in sparsifier.modules.items()}
        backward(model, x)
        changes = sparsifier.step()
        assert bool(changes) == (step == 2)
    for (name, module), lr in zip(sparsifier.modules.items(), (0.01, 0.5), strict=True):
        slot = optimizer.state[module.weight_parameter]["step_size"]
        grown = ~torch.isin(module.flat_sites(), before[name])
        assert bool(grown.any())
        stored = slot.reshape(-1)[module.as_stored(torch.arange(1, module.nnz + 1)).reshape(-1).argsort()[-module.nnz :]]
        assert torch.equal(stored[grown], torch.full((int(grown.sum()),), lr))
        assert bool((stored > 0).all())
        assert bool((stored[~grown] != lr).any())


def test_factored_slots_start_anew_when_pruning_changes_their_shape():
    torch.manual_seed(0)
    model = nn.Sequential(FixedFanInLinear(20, 20, 0.5), nn.ReLU(), nn.Linear(20, 5))
    optimizer = torch.optim.Adafactor(model.parameters())
    x = torch.randn(8, 20)
    backward(model, x)
    optimizer.step()
    sparsifier = Sparsifier(model, optimizer, pruner="magnitude", density=0.2, total_steps=3)
    values = model[0].values_
    assert values not in optimizer.state
    for _ in range(2):
        backward(model, x)
        sparsifier.step()
    assert values.shape == (20, 4)
    assert [tuple(slot.shape) for slot in optimizer.state[values].values()][1:] == [(20, 1), (1, 4)]
