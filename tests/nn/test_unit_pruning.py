"""Units leave: the masked network and the compact one compute the same, and what is gone stays zero under every optimizer."""

import copy

import pytest
import torch
from torch import nn
from unit_nets import NETS, made

from sparsefleet.connections import Connections
from sparsefleet.errors import PluginError, UserError
from sparsefleet.nn.compact import narrowed
from sparsefleet.nn.materialise import rebuilt, replace_module
from sparsefleet.nn.sparsifier import Sparsifier
from sparsefleet.nn.topology import Topology
from sparsefleet.nn.unit_pruning import n_beside, prune_units, units_left
from sparsefleet.registry import Registry
from sparsefleet.sparsity.vocabulary import Linear, Neuron
from sparsefleet.trial.spec import PluginRef

COMPACT, MASKED = (Registry().build("layer", PluginRef(name=name)) for name in ("compact", "masked"))
EPS = 1e-4  # a shift that a BatchNorm further on takes out has a gradient of rounding alone, which 1e-8 would turn into steps
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01, eps=EPS),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, eps=EPS),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, eps=EPS),
}


def masked(network, keep_dense=()):
    """Puts masked modules into the network; they are returned by name."""
    sparse = {}
    for name, module in list(network.named_modules()):
        if isinstance(module, (nn.Linear, nn.Conv2d)) and name not in keep_dense:
            n_in, flat = module.weight[0].numel(), torch.arange(module.weight.numel())
            conn = Connections(name, (module.weight.shape[0], n_in), flat // n_in, flat % n_in, torch.empty(0))
            sparse[name] = rebuilt(module, conn, MASKED)
            sparse[name].layer_name = name
            replace_module(network, name, sparse[name])
    return sparse


def pruned(name, density=0.4, keep_dense=(), optimizer=None, **pattern):
    network, x = made(name)
    sparse = masked(network, keep_dense)
    optimizer = OPTIMIZERS[optimizer](network.parameters()) if optimizer else None
    topology = Topology(sparse, optimizer, 0)
    if optimizer:
        steps(network, topology, optimizer, x, 3)
    prune_units(network, topology, magnitudes(sparse), density, Neuron(**pattern))
    return network, sparse, topology, optimizer, x


def magnitudes(sparse):
    return {name: module.values().abs() for name, module in sparse.items()}


def steps(network, topology, optimizer, x, n):
    target = torch.linspace(-1, 1, 33, dtype=x.dtype).view(11, 3)
    for _ in range(n):
        optimizer.zero_grad()
        nn.functional.mse_loss(network(x), target).backward()
        optimizer.step()
        topology.enforce()


def compacted(network, sparse):
    small = copy.deepcopy(network)
    shapes = {name: tuple(module.mask.shape) for name, module in sparse.items()}
    return small, narrowed(small, shapes, {name: module.flat_sites() for name, module in sparse.items()}, COMPACT)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_the_compact_network_computes_what_the_masked_one_does(name, training):
    network, sparse, _, _, x = pruned(name)
    small, made_small = compacted(network, sparse)
    assert torch.allclose(small.train(training)(x), network.train(training)(x), rtol=0, atol=1e-12)
    assert {type(module).__module__.split(".")[0] for module in small.modules()} <= {"torch", "unit_nets"}
    live = sum(module.nnz for module in sparse.values())
    n_dense = sum(p.numel() for p in made(name)[0].parameters())
    n_sites = sum(module.mask.numel() for module in sparse.values())
    assert sum(p.numel() for p in small.parameters()) == n_dense - n_sites + live - made_small.n_beside < n_dense


def test_a_hand_computed_network_without_its_weakest_neuron():
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, 2.0], [0.5, 0.25], [3.0, -1.0]]))
        network[0].bias.copy_(torch.tensor([0.5, 7.0, 0.0]))  # the large bias does not save neuron 1
        network[2].weight.copy_(torch.tensor([[1.0, 10.0, -1.0]]))
        network[2].bias.fill_(0.25)
    sparse = masked(network)
    prune_units(network, Topology(sparse, None, 0), magnitudes(sparse), 2 / 3, Neuron())
    assert network(torch.tensor([[1.0, 1.0]], dtype=torch.float64)).item() == 3.5 - 2.0 + 0.25
    assert network[0].bias.tolist() == [0.5, 0.0, 0.0]
    small, _ = compacted(network, sparse)
    assert small[0].weight.tolist() == [[1.0, 2.0], [3.0, -1.0]]
    assert small[2].weight.tolist() == [[1.0, -1.0]]


def test_two_norms_choose_two_neurons():
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[2.0, 2.0], [3.0, 0.5]]))
    for p, left in ((1.0, 0), (2.0, 1)):  # L1: 4 > 3.5; L2: 2.83 < 3.04
        one = copy.deepcopy(network)
        sparse = masked(one)
        prune_units(one, Topology(sparse, None, 0), magnitudes(sparse), 0.5, Neuron(p=p))
        assert sparse["0"].mask.any(1).nonzero().flatten().tolist() == [left]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["linear", "linear_sigmoid", "batch_norm", "layer_norm", "conv", "residual"])
def test_what_is_gone_stays_zero_and_training_goes_on_as_in_the_compact_network(name, optimizer):
    network, sparse, topology, optim, x = pruned(name, optimizer=optimizer)
    small, made_small = compacted(network, sparse)
    fresh = OPTIMIZERS[optimizer](small.parameters())
    names = {id(module.weight_parameter): f"{key}.weight" for key, module in sparse.items()}
    names |= {id(module.bias): f"{key}.bias" for key, module in sparse.items() if module.bias is not None}
    names = {names.get(id(parameter), key): parameter for key, parameter in network.named_parameters()}
    for key, parameter in small.named_parameters():
        for slot, value in optim.state[names[key]].items():
            cut = value.reshape(-1)[made_small.places[key]].view_as(parameter) if value.dim() and key in made_small.places else value
            fresh.state[parameter][slot] = cut.clone()
    steps(network, topology, optim, x, 5)
    steps(small, Topology({}, None, 0), fresh, x, 5)
    for key, parameter in small.named_parameters():
        places = made_small.places.get(key, slice(None))
        whole = names[key].detach().reshape(-1)
        assert torch.allclose(parameter.reshape(-1), whole[places], rtol=0, atol=1e-10), key
        rest = whole.clone()
        rest[places] = 0
        assert not rest.any(), f"{key}: what is gone has moved"


def test_a_reader_that_stays_dense_loses_its_columns_too():
    network, sparse, topology, optim, x = pruned("linear", keep_dense=("4",), optimizer="adam")
    steps(network, topology, optim, x, 4)
    gone = ~sparse["2"].mask.any(1)
    assert gone.any() and not network[4].weight[:, gone].any()
    small, _ = compacted(network, sparse)
    assert small[4].in_features == int((~gone).sum())
    assert torch.allclose(small(x), network(x), rtol=0, atol=1e-12)


def test_a_dense_reader_behind_a_sigmoid_is_refused():
    with pytest.raises(UserError, match="4 stays dense and reads units of 2 behind an activation that is not 0 at 0"):
        pruned("linear_sigmoid", keep_dense=("4",))


def test_the_last_layer_keeps_its_outputs_and_the_first_its_inputs():
    _, sparse, _, _, _ = pruned("linear", 0.05)
    assert sparse["4"].mask.any(1).all() and sparse["0"].mask.any(0).all()
    assert all(module.nnz for module in sparse.values())


def test_a_residual_loses_the_same_channels_on_both_branches_by_the_sum_of_their_scores():
    network, _ = made("residual")
    sparse = masked(network)
    total = sparse["stem"].weight.abs().sum((1, 2, 3)) + sparse["outer"].weight.abs().sum((1, 2, 3))
    prune_units(network, Topology(sparse, None, 0), magnitudes(sparse), 0.5, Neuron(counts="units"))
    left = torch.sort(torch.argsort(total, descending=True)[:3]).values
    for name in ("stem", "outer"):
        assert torch.equal(sparse[name].mask.any(3).any(2).any(1).nonzero().flatten(), left)
    assert torch.equal(sparse["head"].mask.any(0).nonzero().flatten(), left)


def test_pruning_in_steps_never_brings_a_unit_back_and_ends_where_one_step_does():
    network, _ = made("conv")
    sparse = masked(network)
    topology, before = Topology(sparse, None, 0), None
    for density in (0.8, 0.5, 0.2):
        prune_units(network, topology, magnitudes(sparse), density, Neuron(), end=0.2)
        now = [kept.clone() for kept in units_left(network, {n: m.flat_sites() for n, m in sparse.items()}).kept]
        assert before is None or all(bool((then | ~new).all()) for then, new in zip(before, now, strict=True))
        before = now
    once, _ = made("conv")
    modules = masked(once)
    prune_units(once, Topology(modules, None, 0), magnitudes(modules), 0.2, Neuron())
    assert [m.nnz for m in modules.values()] == [m.nnz for m in sparse.values()]


def test_parameters_beside_the_connections_are_counted_by_hand():
    network, sparse, _, _, _ = pruned("batch_norm", 0.5, counts="units")
    gone = [int((~sparse[name].mask.any(1)).sum()) for name in ("0", "3")]
    assert gone == [4, 3]  # of 9 and 6: a half, rounded up, stays
    units = units_left(network, {name: module.flat_sites() for name, module in sparse.items()})
    assert n_beside(network, units) == 4 * 2 + 3 * 2  # gain and shift


def test_a_bias_goes_with_its_unit():
    network, sparse, _, _, _ = pruned("linear", 0.5, counts="units")
    units = units_left(network, {name: module.flat_sites() for name, module in sparse.items()})
    assert n_beside(network, units) == 4 + 3


def test_connections_that_are_no_whole_units_are_refused():
    network, _ = made("linear")
    sparse = masked(network)
    keep = torch.rand(sparse["2"].nnz, generator=torch.Generator().manual_seed(0)) < 0.5
    Topology(sparse, None, 0).change("2", keep, torch.empty((2, 0), dtype=torch.int64))
    with pytest.raises(PluginError, match="of 54 connections between the units that are left"):
        compacted(network, sparse)


def test_units_behind_what_cannot_be_followed_are_refused_unless_they_are_kept():
    def build():
        return nn.Sequential(nn.Linear(4, 6), nn.Softmax(-1), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))

    network = build()
    sparse = masked(network)
    with pytest.raises(UserError, match=r"cannot follow the units of 0 through 1 \(Softmax\)"):
        prune_units(network, Topology(sparse, None, 0), magnitudes(sparse), 0.5, Neuron())
    network = build()
    sparse = masked(network, keep_dense=("0",))
    prune_units(network, Topology(sparse, None, 0), magnitudes(sparse), 0.5, Neuron())
    assert sparse["2"].mask.any(1).sum() < 5


@pytest.mark.parametrize("distribution", ["er", "erk"])
def test_distributions_of_weights_are_refused(distribution):
    network, _ = made("linear")
    sparse = masked(network)
    with pytest.raises(UserError, match="uniform or global"):
        prune_units(network, Topology(sparse, None, 0), magnitudes(sparse), 0.5, Neuron(), distribution)


@pytest.mark.parametrize("name", ["linear", "layer_norm", "conv", "residual"])
def test_a_loop_of_ones_own_ends_with_the_compact_network_and_trains_on(name):
    network, x = made(name)
    twin = copy.deepcopy(network)
    ends = {}
    for layer, model in (("compact", network), ("masked", twin)):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        options = {"schedule": Linear(begin=0.0, end=0.5, every=2), "pattern": Neuron(), "total_steps": 10}
        sparsifier = Sparsifier(model, optimizer, pruner="magnitude", layer=layer, density=0.4, **options)
        target = torch.linspace(-1, 1, 33, dtype=x.dtype).view(11, 3)
        for step in range(9):
            if step == 6:
                sparsifier.finish()
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), target).backward()
            sparsifier.step()
        ends[layer] = model.eval()(x)
        assert {id(p) for p in model.parameters()} == {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert torch.allclose(ends["compact"], ends["masked"], rtol=0, atol=1e-10)
    assert sum(p.numel() for p in network.parameters()) < 0.7 * sum(p.numel() for p in made(name)[0].parameters())


def test_a_loop_of_ones_own_with_another_pattern_cannot_end_compact():
    network, _ = made("linear")
    with pytest.raises(UserError, match="layer 'compact' removes whole units"):
        Sparsifier(network, OPTIMIZERS["sgd"](network.parameters()), pruner="magnitude", layer="compact", density=0.4, total_steps=5)


def test_a_norm_with_hooks_is_not_replaced_without_a_word():
    network, _ = made("layer_norm")
    network[1].register_forward_hook(lambda *_: None)
    sparse = masked(network)
    with pytest.raises(UserError, match="1 has hooks, which its replacement would not have"):
        prune_units(network, Topology(sparse, None, 0), magnitudes(sparse), 0.5, Neuron())
