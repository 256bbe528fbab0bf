"""The fused LayerNorm is torch's, keeps feature-major activations, and takes its place behind sparse layers in a materialised network."""

import pytest
import torch
from torch import nn

import sparsefleet.nn as sfnn
from sparsefleet.nn.materialise import draw_connections, materialise, weight_shape
from sparsefleet.registry import Registry, catalog
from sparsefleet.trial.spec import PluginRef

REGISTRY = Registry(catalog())


def feature_major(x):
    return x.t().contiguous().t()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("turn", [feature_major, lambda x: x])
@pytest.mark.parametrize("relu", [False, True])
def test_it_computes_what_torch_does(dtype, turn, relu):
    torch.manual_seed(0)
    ours, torchs = sfnn.LayerNorm(37, relu=relu, dtype=dtype), nn.LayerNorm(37, dtype=torch.float64)
    with torch.no_grad():
        ours.weight.uniform_(-2, 2)
        ours.bias.uniform_(-1, 1)
    torchs.load_state_dict({key: value.double() for key, value in ours.state_dict().items()})
    values, up = torch.randn(19, 37), torch.randn(19, 37)
    x, reference = turn(values.to(dtype).clone()).requires_grad_(), values.double().requires_grad_()
    got, want = ours(x), torchs(reference)
    want = want.relu() if relu else want
    got.backward(turn(up.to(dtype)))
    want.backward(up.double())
    bound = {"rtol": 1e-5, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(got.double(), want, **bound)
    torch.testing.assert_close(x.grad.double(), reference.grad, **bound)
    torch.testing.assert_close(ours.weight.grad.double(), torchs.weight.grad, **bound)
    torch.testing.assert_close(ours.bias.grad.double(), torchs.bias.grad, **bound)


def test_it_is_a_drop_in():
    assert sfnn.LayerNorm(8).state_dict().keys() == nn.LayerNorm(8).state_dict().keys()
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(sfnn.LayerNorm(8, elementwise_affine=False)(x), nn.LayerNorm(8, elementwise_affine=False)(x))
    torch.testing.assert_close(sfnn.LayerNorm(8, bias=False, relu=True)(x), nn.LayerNorm(8, bias=False)(x).relu())
    with pytest.raises(ValueError, match="the last dimension alone"):
        sfnn.LayerNorm((3, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sfnn.LayerNorm(8)(x).dtype == nn.LayerNorm(8)(x).dtype


def network(layer, dtype=torch.float32):
    with torch.device("meta"):
        module = nn.Sequential(
            nn.Linear(20, 48),
            nn.LayerNorm(48),
            nn.ReLU(),
            nn.Linear(48, 40),
            nn.LayerNorm(40),
            nn.ReLU(),
            nn.Linear(40, 16),
            nn.LayerNorm(16),
        )
    plugin, connectivity = REGISTRY.build("layer", PluginRef(name=layer)), REGISTRY.build("connectivity", PluginRef(name="fixed-fan-in"))
    modules = {}
    for name in () if layer == "dense" else ("0", "3", "6"):
        shape = weight_shape(module.get_submodule(name))
        conn = draw_connections(name, shape, shape[0] * shape[1] // 4, connectivity, 3, torch.device("cpu"), plugin)
        modules[name] = plugin, conn
    return module, materialise(module, modules, seed=3, dtype=dtype)


@pytest.mark.parametrize("layer", ["fixed-fan-in", "csr"])
def test_norms_and_relus_behind_sparse_layers_are_fused(layer):
    module, _ = network(layer)
    assert [type(part).__name__ for part in module][1:3] == ["LayerNorm", "Identity"]
    assert [type(module[i]) for i in (1, 4, 7)] == [sfnn.LayerNorm] * 3
    assert [module[i].relu for i in (1, 4, 7)] == [True, True, False]
    for other in ("masked", "dense"):
        plain, _ = network(other)
        assert [type(plain[i]) for i in (1, 2)] == [nn.LayerNorm, nn.ReLU]
        norms = {key for key in plain.state_dict() if key.split(".")[0] in "147"}
        assert norms == {key for key in module.state_dict() if key.split(".")[0] in "147"}
    module.load_state_dict({key: value + 0.25 if key == "1.weight" else value for key, value in module.state_dict().items()})
    assert float(module[1].weight.detach()[0]) == 1.25


@pytest.mark.parametrize("layer", ["fixed-fan-in", "csr"])
def test_the_network_computes_what_the_masked_one_does(layer):
    reference, _ = network("masked", torch.float64)
    x, up = torch.randn(9, 20, dtype=torch.float64), torch.randn(9, 16, dtype=torch.float64)
    reference(x).backward(up)
    for dtype, bound in ((torch.float64, 1e-11), (torch.float32, 2e-5)):
        module, sparse = network(layer, dtype)
        out = module(x.to(dtype))
        out.backward(up.to(dtype))
        torch.testing.assert_close(out.double(), reference(x), rtol=bound, atol=bound)
        for name, each in sparse.items():
            torch.testing.assert_close(
                each.grad_values().double(), reference.get_submodule(name).grad_values(), rtol=bound, atol=10 * bound
            )
        torch.testing.assert_close(module[4].weight.grad.double(), reference[4].weight.grad, rtol=bound, atol=10 * bound)


@pytest.mark.parametrize("layer", ["fixed-fan-in", "csr"])
def test_activations_and_their_gradients_stay_feature_major_between_layers(layer):
    from sparsefleet.ops import engine

    if engine("cpu").name != "native":
        pytest.skip("the C kernels are not built here; torch's own norm does not keep the layout")
    module, _ = network(layer)
    strides, gradients = [], []
    for part in module:
        part.register_forward_hook(lambda _, __, out: strides.append(out.stride()))
        part.register_full_backward_hook(lambda _, by_input, __: gradients.extend(g.stride() for g in by_input if g is not None))
    module(torch.randn(9, 20, requires_grad=True)).backward(torch.randn(9, 16))
    assert set(strides) == {(1, 9)}
    assert set(gradients[:-1]) == {(1, 9)}  # the last one leaves the network, as row-major as what came in
    assert len(gradients) == len(module)


def test_one_transposing_copy_is_made_and_that_at_the_entry(monkeypatch):
    """Counted where the layers ask for feature-major operands, forward and backward."""
    from sparsefleet.ops import engine, linear, norm

    if engine("cpu").name != "native":
        pytest.skip("the C kernels are not built here; torch's own norm does not keep the layout")
    module, _ = network("fixed-fan-in")
    copies, honest = [], linear.feature_major

    def counted(x):
        turned = honest(x)
        if turned.data_ptr() != x.data_ptr():
            copies.append(tuple(x.shape))
        return turned

    for where in (linear, norm):
        if hasattr(where, "feature_major"):
            monkeypatch.setattr(where, "feature_major", counted)
    module(torch.randn(9, 20)).backward(feature_major(torch.randn(9, 16)))
    assert set(copies) <= {(9, 20)}
    assert copies
