"""Every sparse layer stands where an nn.Linear stood: inputs, copies, devices' dtypes, state, optimizers, gradients, compilation."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import sparsefleet.nn as sfnn
from sparsefleet.errors import InvalidMask, UserError

LAYERS = {
    "csr": sfnn.CsrLinear,
    "fixed-fan-in": sfnn.FixedFanInLinear,
    "block": sfnn.BlockLinear,
    "masked": sfnn.MaskedLinear,
}
PEERS = {
    "spmm": lambda *a, **k: torch_sparse_linear("spmm", *a, **k),
    "SparseTensor": lambda *a, **k: torch_sparse_linear("tensor", *a, **k),
}
LAYERS |= PEERS
NAMES = [pytest.param(name, marks=pytest.mark.torch_sparse) if name in PEERS else name for name in LAYERS]
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")


def torch_sparse_linear(engine, *args, **options):
    pytest.importorskip("torch_sparse")
    return sfnn.TorchSparseLinear(*args, engine=engine, **options)


def dense_of(layer):
    weight = layer.weight.detach()
    return weight.to_dense() if weight.is_sparse else weight


def net(make, **options):
    return nn.Sequential(make(12, 16, 0.3, seed=1, **options), nn.ReLU(), make(16, 8, 0.5, seed=2, **options))


@pytest.mark.parametrize("name", NAMES)
def test_any_leading_dimensions(name):
    layer = LAYERS[name](12, 8, 0.3, seed=3, dtype=torch.float64)
    weight, bias = dense_of(layer), layer.bias.detach()
    for leading in [(), (1,), (5,), (2, 3), (2, 0, 3), (0,)]:
        x = torch.randn(*leading, 12, dtype=torch.float64)
        torch.testing.assert_close(layer(x), nn.functional.linear(x, weight, bias))
        assert layer(x).shape == (*leading, 8)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_dense_weight_at_its_sites(name):
    layer = LAYERS[name](12, 8, 0.3, seed=3, dtype=torch.float64)
    weight = dense_of(layer).clone().requires_grad_()
    x, y = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True), None
    twin = x.detach().clone().requires_grad_()
    up = torch.randn(2, 5, 8, dtype=torch.float64)
    layer(x).backward(up)
    y = nn.functional.linear(twin, weight, layer.bias.detach())
    y.backward(up)
    torch.testing.assert_close(x.grad, twin.grad)
    torch.testing.assert_close(layer.grad_values(), weight.grad.view(-1)[layer.flat_sites()])
    torch.testing.assert_close(layer.bias.grad, up.sum((0, 1)))


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name):
    layer = LAYERS[name](8, 8, 0.3, seed=3, dtype=torch.float64)
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    parameters = dict(layer.named_parameters())

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *parameters.values()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["state_dict", "deepcopy", "pickle", "torch.save"])
def test_round_trips(name, how):
    make = LAYERS[name]
    first, x = make(12, 16, 0.3, seed=1), torch.randn(4, 12)
    first.method_state = {"age": torch.arange(first.nnz)}
    if how == "state_dict":
        second = make(12, 16, 0.3, seed=9)  # other connections
        assert not torch.equal(second.flat_sites(), first.flat_sites())
        second.load_state_dict(first.state_dict())
    elif how == "deepcopy":
        second = copy.deepcopy(first)
    elif how == "pickle":
        second = pickle.loads(pickle.dumps(first))
    else:
        stream = io.BytesIO()
        torch.save(first, stream)
        second = torch.load(io.BytesIO(stream.getvalue()), weights_only=False)
    assert torch.equal(second.flat_sites(), first.flat_sites())
    assert torch.equal(second(x), first(x))
    assert how == "state_dict" or torch.equal(second.method_state["age"], first.method_state["age"])
    for module in (first, second):
        module(x).square().sum().backward()  # the transposed index follows
    assert torch.equal(first.grad_values(), second.grad_values())
    second.weight_parameter.detach().zero_()
    assert first.values().abs().sum() > 0


@pytest.mark.parametrize("name", ["csr", "fixed-fan-in", "block"])
def test_a_state_dict_brings_its_own_number_of_connections(name):
    make = LAYERS[name]
    first, second, x = make(12, 16, 0.3, seed=1), make(12, 16, 0.7, seed=1), torch.randn(4, 12)
    parameter = second.weight_parameter
    second.load_state_dict(first.state_dict())
    assert second.weight_parameter is parameter
    assert torch.equal(second(x), first(x))


@pytest.mark.parametrize(
    ("name", "key", "damage", "why"),
    [
        ("csr", "col", lambda col: col + 12, "58 of 58 connections lie outside 16 x 12"),
        ("csr", "col", lambda col: col.flip(0), "of 58 connections are not in ascending order"),
        ("csr", "crow", lambda crow: crow + 1, "the row pointer does not divide 58"),
        ("csr", "crow", lambda crow: crow[:-1], "a row pointer of 16, expected 17"),
        ("csr", "crow", lambda crow: torch.cat([crow[:1], crow[1:-1].flip(0), crow[-1:]]), "the row pointer does not divide 58"),
        ("fixed-fan-in", "col", lambda col: -col - 1, "64 of 64 connections lie outside 16 x 12"),
        ("fixed-fan-in", "values_", lambda values: values[:-1], r"values of shape \(15, 4\), expected"),
        ("block", "tiles", lambda tiles: tiles + 100, "blocks lie outside"),
        ("block", "values_", lambda values: values[:1], r"values of shape \(1, 4, 4\), expected"),
    ],
)
def test_a_damaged_index_is_refused(name, key, damage, why):
    state = LAYERS[name](12, 16, 0.3, seed=1).state_dict()
    state[key] = damage(state[key])
    layer = LAYERS[name](12, 16, 0.3, seed=9)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    with pytest.raises(RuntimeError, match=why):
        layer.load_state_dict(state)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_dtypes(name):
    layer, x = LAYERS[name](12, 8, 0.5, seed=1), torch.randn(4, 12)
    want = nn.functional.linear(x, dense_of(layer), layer.bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = layer(x)
        assert got.dtype == nn.Linear(12, 8)(x).dtype == torch.bfloat16
        got.float().sum().backward()
    assert layer.weight_parameter.grad.dtype == torch.float32
    torch.testing.assert_close(got.float(), want, rtol=0.02, atol=0.02)
    double = copy.deepcopy(layer).double()
    assert double(x.double()).dtype == torch.float64
    torch.testing.assert_close(double(x.double()).float(), want)
    assert layer.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16


OPTIMIZERS = ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "ASGD", "Rprop", "LBFGS"]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ["csr", "fixed-fan-in", "block"])
def test_every_optimizer_does_to_the_values_what_it_does_to_the_same_dense_weights(name, kind):
    """Dense weights whose absent sites are masked in the forward pass get the same gradients, so the same steps."""
    searching = {"line_search_fn": "strong_wolfe", "max_iter": 4}  # a fixed step may diverge, and many multiply the rounding
    options = {"SGD": {"lr": 0.05, "momentum": 0.9, "nesterov": True}, "LBFGS": searching}.get(kind, {"lr": 0.01})
    make = LAYERS[name]
    sparse = net(make, dtype=torch.float64)
    masked = nn.Sequential(
        *(
            sfnn.MaskedModule.from_connections(m.connections(), m.bias, template=nn.Linear(m.n_in, m.n_out, device="meta"))
            if isinstance(m, sfnn.SparseModule)
            else m
            for m in sparse
        )
    )
    draws = torch.Generator().manual_seed(0)
    x, y = (torch.randn(20, n, generator=draws, dtype=torch.float64) for n in (12, 8))
    for model in (sparse, masked):
        optimizer = getattr(torch.optim, kind)(model.parameters(), **options)

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            return loss

        for _ in range(5):
            optimizer.step(closure)
    for a, b in zip(sparse, masked, strict=True):
        if isinstance(a, sfnn.SparseModule):
            torch.testing.assert_close(a.values(), b.values(), rtol=1e-9, atol=1e-11)


def test_the_weight_is_the_sparse_view_of_the_notebook():
    layer = sfnn.CsrLinear(10, 20, seed=0)
    weight = layer.weight
    assert weight.layout == torch.sparse_coo
    assert weight.is_coalesced()
    assert (weight.shape, weight._nnz()) == ((20, 10), 20)
    assert weight.indices().shape == (2, 20)
    assert weight.values().data_ptr() == layer.values_.data_ptr()
    assert not weight.requires_grad
    assert "nnz=20" in repr(weight)
    assert repr(layer) == "CsrLinear(in_features=10, out_features=20, bias=True, nnz=20, density=0.1)"


def test_values_are_ordinary_parameters():
    assert sfnn.CsrLinear(20, 10, 0.2, seed=0).values_.shape == (40,)
    assert sfnn.FixedFanInLinear(20, 10, 0.2, seed=0).values_.shape == (10, 4)
    assert sfnn.FixedFanInLinear(20, 10, fan_in=7, seed=0).values_.shape == (10, 7)
    assert sfnn.BlockLinear(20, 10, 0.2, seed=0, block=5).values_.shape == (2, 5, 5)
    assert [name for name, _ in sfnn.FixedFanInLinear(20, 10, bias=False).named_parameters()] == ["values_"]


def test_the_seed_is_torchs_unless_it_is_given():
    torch.manual_seed(5)
    first, other = sfnn.CsrLinear(20, 10), sfnn.CsrLinear(20, 10)
    torch.manual_seed(5)
    again = sfnn.CsrLinear(20, 10)
    assert torch.equal(first.weight.to_dense(), again.weight.to_dense())
    assert not torch.equal(first.flat_sites(), other.flat_sites())
    assert torch.equal(sfnn.CsrLinear(20, 10, seed=4).flat_sites(), sfnn.CsrLinear(20, 10, seed=4).flat_sites())
    assert float(first.values().abs().max()) <= 20**-0.5


def test_connections_of_the_user():
    sites = torch.tensor([[1, 0, 1], [2, 1, 0]])
    layer = sfnn.CsrLinear(3, 2, connections=sites)
    assert layer.flat_sites().tolist() == [1, 3, 5]
    with pytest.raises(InvalidMask, match="1 of 3 connections lie outside 2 x 3"):
        sfnn.CsrLinear(3, 2, connections=torch.tensor([[1, 0, 2], [2, 1, 0]]))
    with pytest.raises(InvalidMask, match="1 of 3 connections are duplicates"):
        sfnn.CsrLinear(3, 2, connections=torch.tensor([[1, 1, 0], [2, 2, 0]]))
    with pytest.raises(UserError, match="constant fan-in, and these connections have 1 to 2"):
        sfnn.FixedFanInLinear(3, 2, connections=sites)
    with pytest.raises(UserError, match="whole 2 x 2 blocks; 3 connections lie in 2 blocks"):
        sfnn.BlockLinear(4, 2, connections=sites, block=2)


def test_misuse_is_named():
    with pytest.raises(UserError, match=r"CsrLinear takes \(..., 20\), got \(4, 19\)"):
        sfnn.CsrLinear(20, 10)(torch.zeros(4, 19))
    with pytest.raises(UserError, match=r"density must be in \(0, 1\], got 1.5"):
        sfnn.CsrLinear(20, 10, 1.5)
    with pytest.raises(UserError, match="a fan-in of 21 does not fit"):
        sfnn.FixedFanInLinear(20, 10, fan_in=21)
    with pytest.raises(UserError, match="multiples of 64, got 10 x 20"):
        sfnn.TwoFourLinear(20, 10)
    with pytest.raises(UserError, match="computes on CUDA, and this input lies on cpu"):
        sfnn.TwoFourLinear(64, 64)(torch.zeros(4, 64))


def test_two_of_four_are_held():
    layer = sfnn.TwoFourLinear(64, 128, seed=2, dtype=torch.float64)
    groups = torch.zeros(128 * 64).index_fill_(0, layer.flat_sites(), 1.0).view(-1, 4).sum(1)
    assert layer.values_.shape == (128, 32)
    assert groups.unique().tolist() == [2.0]
    assert torch.equal(layer.dense().detach().view(-1)[layer.flat_sites()], layer.values())
    other = sfnn.TwoFourLinear(64, 128, seed=3, dtype=torch.float64)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.dense(), layer.dense())
    layer.dense().square().sum().backward()
    torch.testing.assert_close(layer.grad_values(), 2 * layer.values())


@pytest.mark.gpu
def test_two_four_multiplies_on_cuda():
    layer = sfnn.TwoFourLinear(128, 64, seed=2, device="cuda")
    x = torch.randn(7, 128, device="cuda", requires_grad=True)
    up = torch.randn(7, 64, device="cuda")
    got = layer(x)
    got.backward(up)
    dense = layer.dense().detach().requires_grad_()
    twin = x.detach().clone().requires_grad_()
    want = nn.functional.linear(twin, dense, layer.bias)
    want.backward(up)
    torch.testing.assert_close(got, want, rtol=0.02, atol=0.02)
    torch.testing.assert_close(x.grad, twin.grad, rtol=0.02, atol=0.02)
    torch.testing.assert_close(layer.grad_values(), dense.grad.view(-1)[layer.flat_sites()], rtol=0.02, atol=0.05)


def test_importing_the_package_imports_no_torch():
    import subprocess
    import sys

    code = "import sys, sparsefleet, sparsefleet.nn; assert 'torch' not in sys.modules; sparsefleet.nn.CsrLinear; assert 'torch' in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["csr", "fixed-fan-in"])
def test_compiles_without_a_break(name):
    model = net(LAYERS[name])
    x = torch.randn(4, 12)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).sum().backward()
    by_compiled = model[0].grad_values().clone()
    model.zero_grad()
    model(x).sum().backward()
    torch.testing.assert_close(by_compiled, model[0].grad_values())
