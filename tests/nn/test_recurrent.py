"""LSTM and GRU with a Linear per gate: torch's own module is the reference, in float64."""

import copy
import pickle

import pytest
import torch
from compound_nets import LAYERS, as_torch, calls_its_gates, gradients_of, linears, sparse
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from sparsefleet.nn import GRU, LSTM, CsrLinear, MaskedModule
from sparsefleet.nn.expose import exposed, packed
from sparsefleet.nn.topology import Topology

SHAPES = [
    {},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"bias": False, "num_layers": 3},
    {"num_layers": 2, "bidirectional": True, "dropout": 0.4},
]
BOTH = [(nn.LSTM, LSTM, shape) for shape in [*SHAPES, {"proj_size": 3, "bidirectional": True, "num_layers": 2}]]
BOTH += [(nn.GRU, GRU, shape) for shape in SHAPES]


def states(hx):
    return (hx,) if isinstance(hx, torch.Tensor) else tuple(hx)


def first_state(module, n_batch, *, batched=True):
    lead = module.num_layers * (1 + module.bidirectional)
    widths = [module.hidden_size] if isinstance(module, nn.GRU) else [module.proj_size or module.hidden_size, module.hidden_size]
    parts = [torch.randn(lead, *([n_batch] if batched else []), width, dtype=torch.float64) for width in widths]
    return parts[0] if len(parts) == 1 else tuple(parts)


def inputs(module):
    """Padded with and without a first state, unbatched, and packed, sorted by the caller or not."""
    x = torch.randn(4, 6, 5, dtype=torch.float64)
    n_batch = 4 if module.batch_first else 6
    lengths = torch.tensor([3, 1, 4, 2, 4, 1][:n_batch])
    yield x, None
    yield x, first_state(module, n_batch)
    yield x[0], first_state(module, 1, batched=False)
    packed = pack_padded_sequence(x, lengths, batch_first=module.batch_first, enforce_sorted=False)
    yield packed, None
    yield packed, first_state(module, n_batch)
    yield pack_padded_sequence(x, lengths.sort(descending=True).values, batch_first=module.batch_first), first_state(module, n_batch)


def run(module, x, hx):
    """Output, last states, and a loss of all of them."""
    torch.manual_seed(3)  # of dropout
    output, last = module(x, hx)
    data = output.data if isinstance(output, PackedSequence) else output
    return data, states(last), data.square().sum() + sum(part.sin().sum() for part in states(last))


@pytest.mark.parametrize("listened", [False, True], ids=["fused", "loop"])
@pytest.mark.parametrize(("kind", "own", "shape"), BOTH)
def test_it_is_torchs_module(kind, own, shape, listened):
    torch.manual_seed(0)
    theirs = kind(5, 7, dtype=torch.float64, **shape)
    ours = own.from_torch(theirs)
    if listened:
        calls_its_gates(ours)
    for x, hx in inputs(theirs):
        (a, a_last, a_loss), (b, b_last, b_loss) = run(theirs, x, hx), run(ours, x, hx)
        for want, got in zip((a, *a_last), (b, *b_last), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
        theirs.zero_grad(), ours.zero_grad()
        a_loss.backward(), b_loss.backward()
        for name, got, want in gradients_of(ours, theirs):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-11, msg=name)
    x, _ = next(inputs(theirs))
    torch.testing.assert_close(ours.eval()(x)[0], theirs.eval()(x)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_every_storage_of_gates_is_torchs_module_with_zeros(layer, kind):
    network, found = sparse(lambda: kind(8, 12, num_layers=2, bidirectional=True), layer)
    assert len(found) == 4 * 2 * (4 if kind is nn.LSTM else 3)
    ours = network[0]
    theirs = as_torch(ours, kind(8, 12, num_layers=2, bidirectional=True, dtype=torch.float64))
    x = torch.randn(5, 3, 8, dtype=torch.float64)
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    (a, a_last, a_loss), (b, b_last, b_loss) = run(theirs, other, None), run(ours, mine, None)
    for want, got in zip((a, *a_last), (b, *b_last), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    a_loss.backward(), b_loss.backward()
    torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=1e-11)
    for name, got, want in gradients_of(ours, theirs):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-11, msg=name)


def test_some_gates_may_be_sparse_and_others_dense():
    network, _ = sparse(lambda: nn.LSTM(8, 12), "csr", names=["0.layer0.from_hidden.forget"])
    ours = network[0]
    assert isinstance(ours.layer0.from_hidden.forget, CsrLinear)
    assert type(ours.layer0.from_hidden.cell) is nn.Linear
    x = torch.randn(5, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x)[0], as_torch(ours, nn.LSTM(8, 12, dtype=torch.float64))(x)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("layer", ["masked", "csr"])
def test_growing_looks_at_the_gradient_of_all_times(layer):
    network, found = sparse(lambda: nn.LSTM(8, 12), layer)
    ours, gate = network[0], found["0.layer0.from_hidden.output"]
    theirs = as_torch(ours, nn.LSTM(8, 12, dtype=torch.float64))
    x = torch.randn(5, 3, 8, dtype=torch.float64)
    for module in found.values():
        module.watch_absent(True)
    run(ours, x, None)[2].backward()
    run(theirs, x, None)[2].backward()
    dense = theirs.weight_hh_l0.grad[36:48].abs().reshape(-1)
    dense[gate.flat_sites()] = -1
    want = torch.sort(torch.argsort(dense, descending=True, stable=True)[:9]).values
    row, col = gate.best_absent(gate.flat_sites(), 9)
    assert torch.equal(row * 12 + col, want)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)])
def test_absent_weights_stay_exactly_zero_and_all_others_are_trained(optimizer):
    """The sparse LSTM of source 001, slide 12, masks ``.data`` in forward alone: what the optimizer does in between stays."""
    network, found = sparse(lambda: nn.LSTM(8, 12), "masked", dtype=torch.float32)
    trainer = optimizer(network.parameters())
    topology = Topology(found, trainer, 0)
    before = {name: module.values().clone() for name, module in found.items()}
    for _ in range(5):
        trainer.zero_grad()
        run(network[0], torch.randn(5, 3, 8), None)[2].backward()
        trainer.step()
        topology.enforce()
    for name, module in found.items():
        assert torch.equal(module.weight_parameter == 0, ~module.mask)
        assert bool((module.values() != before[name]).all())


@pytest.mark.parametrize(("layer", "kind"), [("masked", nn.LSTM), ("csr", nn.LSTM), ("quantised", nn.GRU)])
def test_copies_pickles_and_state_dicts_compute_the_same(layer, kind):
    network, _ = sparse(lambda: kind(8, 12, num_layers=2), layer)
    other, _ = sparse(lambda: kind(8, 12, num_layers=2), layer, seed=1)
    x = torch.randn(5, 3, 8, dtype=torch.float64)
    want = network[0](x)[0]
    assert not torch.equal(other[0](x)[0], want)
    other.load_state_dict(network.state_dict())
    for twin in (other, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin[0](x)[0], want)


def test_names_of_gates_and_of_the_state_dict():
    names = linears(exposed(nn.Sequential(nn.GRU(3, 4, num_layers=2, bidirectional=True))))
    parts = [f"{part}.{gate}" for part in ("from_input", "from_hidden") for gate in ("reset", "update", "new")]
    assert names == [f"0.{place}.{part}" for place in ("layer0", "layer0_reverse", "layer1", "layer1_reverse") for part in parts]
    lstm = exposed(nn.LSTM(3, 4, proj_size=2))
    gates = ("input", "forget", "cell", "output")
    keys = [f"layer0.{part}.{gate}.{key}" for part in ("from_input", "from_hidden") for gate in gates for key in ("weight", "bias")]
    assert list(lstm.state_dict()) == [*keys, "layer0.projection.weight"]


def test_first_weights_are_within_torchs_bound_and_shared_by_every_storage():
    dense, _ = sparse(lambda: nn.LSTM(300, 16), "masked", names=[])
    _, found = sparse(lambda: nn.LSTM(300, 16), "masked")
    _, held = sparse(lambda: nn.LSTM(300, 16), "csr")
    for name, module in found.items():
        weight = dense.get_submodule(name).weight.detach()
        assert 0.24 < weight.abs().max() <= 0.25  # 1 / sqrt(16), also where there are 300 inputs
        assert 0.15 < dense.get_submodule(name).bias.abs().max() <= 0.25
        want = weight.reshape(-1)[module.flat_sites()]
        assert torch.equal(module.values(), want)
        assert torch.equal(held[name].values(), want)
        assert torch.equal(module.bias, dense.get_submodule(name).bias)
    own = LSTM(300, 16)
    assert all(0.15 < p.abs().max() <= 0.25 for p in own.parameters())


def test_what_torch_refuses_is_refused():
    with pytest.raises(ValueError, match="dropout should be a number"):
        LSTM(3, 4, dropout=2)
    with pytest.raises(ValueError, match="2D or 3D"):
        LSTM(3, 4)(torch.randn(3))
    with pytest.raises(RuntimeError, match=r"input_size\. Expected 3, got 4"):
        LSTM(3, 4)(torch.randn(2, 2, 4))
    with pytest.raises(RuntimeError, match=r"Expected hidden size \(1, 2, 4\), got \(1, 2, 3\)"):
        GRU(3, 4)(torch.randn(2, 2, 3), torch.zeros(1, 2, 3))


def test_a_subclass_of_torchs_module_stays_what_it_is():
    class Own(nn.LSTM):
        pass

    network = exposed(nn.Sequential(Own(3, 4), nn.LSTM(4, 4), nn.RNN(4, 4)))
    assert [type(module) for module in network] == [Own, LSTM, nn.RNN]


def test_one_module_in_two_places_stays_one():
    lstm = nn.LSTM(4, 4)
    network = exposed(nn.ModuleDict({"a": lstm, "b": nn.Sequential(lstm)}))
    assert network["a"] is network["b"][0]
    assert isinstance(network["a"], LSTM)


def test_frozen_weights_stay_frozen_and_the_mode_stays():
    lstm = nn.LSTM(4, 4).eval()
    lstm.weight_hh_l0.requires_grad_(False)
    ours = LSTM.from_torch(lstm)
    assert not ours.training
    assert not any(gate.weight.requires_grad for gate in ours.layer0.from_hidden.children())
    assert all(gate.weight.requires_grad and gate.bias.requires_grad for gate in ours.layer0.from_input.children())


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["masked", "csr"])
def test_it_compiles_and_exports(layer):
    network, found = sparse(lambda: nn.LSTM(8, 12), layer, dtype=torch.float32)
    x = torch.randn(4, 2, 8)
    want = network[0](x)[0]
    compiled = torch.compile(network[0], backend="aot_eager")
    got = compiled(x)[0]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    got.square().sum().backward()
    assert all(bool((module.grad_values() != 0).all()) for module in found.values())
    if all(isinstance(module, MaskedModule) for module in found.values()):
        program = torch.export.export(network[0], (x,)).module()
        torch.testing.assert_close(program(x)[0], want, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.network
def test_it_trains_under_distributed_data_parallel():
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    network, found = sparse(lambda: nn.LSTM(8, 12), "masked", dtype=torch.float32)
    alone = copy.deepcopy(network)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(network[0])
        for _ in range(2):
            x = torch.randn(4, 2, 8)
            run(parallel, x, None)[2].backward()
            run(alone[0], x, None)[2].backward()
    finally:
        distributed.destroy_process_group()
    for one, other in zip(network.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert all(not bool(module.weight_parameter.grad[~module.mask].any()) for module in found.values())


@pytest.mark.parametrize(
    "own", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}, {"bias": False, "dropout": 0.5, "num_layers": 2}]
)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_packed_it_is_torchs_own_module_with_the_same_weights(kind, own):
    before = kind(5, 4, **own).double().eval()
    theirs = packed(exposed(copy.deepcopy(before)))
    assert type(theirs) is kind
    assert not theirs.training
    assert {name: value.tolist() for name, value in theirs.state_dict().items()} == {
        name: value.tolist() for name, value in before.state_dict().items()
    }
    assert [getattr(theirs, name) for name in ("num_layers", "bias", "batch_first", "dropout", "bidirectional")] == [
        getattr(before, name) for name in ("num_layers", "bias", "batch_first", "dropout", "bidirectional")
    ]


def test_packing_leaves_sparse_gates_alone():
    network = nn.Sequential(LSTM(5, 4), LSTM(4, 3))
    network[0].layer0.from_input.forget = CsrLinear(5, 4, 0.5)
    assert [type(module) for module in packed(network)] == [LSTM, nn.LSTM]
    assert packed(nn.Sequential(LSTM(5, 4, proj_size=2)))[0].proj_size == 2


def test_a_dense_net_is_timed_with_torchs_own_module():
    from sparsefleet.measure.baseline import EAGER, DenseNet
    from sparsefleet.plugin import DataInfo
    from sparsefleet.trial.spec import TrialSpec

    spec = {"dataset": {"name": "digits"}, "model": {"name": "mlp"}, "optimizer": {"kind": "sgd", "lr": 0.1}, "train": {"epochs": 1}}
    net = DenseNet("forward", nn.Sequential(LSTM(5, 4)), TrialSpec(**spec), DataInfo("classification", (3, 5), 4), 1)
    assert type(net.side(EAGER).network[0]) is nn.LSTM
    assert type(net.network[0]) is LSTM  # the trained one stays
