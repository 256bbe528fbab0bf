"""Fake-quantised masked weights, against rounding written out in numpy; the faults of source 001, slide 14, among the tests."""

import copy
import pickle

import numpy as np
import pytest
import torch
from compound_nets import plugin
from torch import nn
from torch.func import functional_call

from sparsefleet import Connections
from sparsefleet.nn import QuantisedLinear, QuantisedModule, Sparsifier
from sparsefleet.nn.quantised import rounded
from sparsefleet.sparsity.bytes import stored_bytes
from sparsefleet.testing import check


def by_hand(weight, bits):
    """Row by row, weight by weight."""
    levels, out = 2 ** (bits - 1) - 1, np.zeros_like(weight)
    for i, row in enumerate(weight):
        largest = max(abs(value) for value in row.flat)
        for j, value in np.ndenumerate(row):
            out[i][j] = 0.0 if largest == 0 else largest / levels * np.rint(value / (largest / levels))
    return out


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(5, 10), (4, 3, 2, 2)])
def test_rounding_is_that_by_hand(bits, shape):
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(bits))
    weight[1] = 0
    got = rounded(weight, bits)
    np.testing.assert_allclose(got.numpy(), by_hand(weight.numpy(), bits), rtol=0, atol=1e-15)
    for row, want in zip(got, weight, strict=True):
        steps = row.unique().numel()
        assert steps <= 2**bits - 1
        assert row.abs().max() == pytest.approx(want.abs().max())
        assert (row - want).abs().max() <= want.abs().max() / (2 ** (bits - 1) - 1) / 2 + 1e-15


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_empty_and_tiny_rows_divide_by_nothing(dtype):
    tiny = torch.finfo(dtype).smallest_normal
    weight = torch.tensor([[0.0, 0.0], [tiny, -tiny / 4], [1e30, 1.0]], dtype=dtype, requires_grad=True)
    got = rounded(weight, 4)
    assert bool(got.isfinite().all())
    assert not got[0].any()
    got.sum().backward()
    assert bool((weight.grad == 1).all())


def test_every_connection_is_trained():
    """Rounding alone has no gradient: one of 50 weights of source 001's layer got any, through the largest magnitude."""
    layer = QuantisedLinear(10, 5, density=0.3, bits=4, seed=0)
    x, up = torch.randn(7, 10), torch.randn(7, 5)
    layer(x).backward(up)
    np.testing.assert_allclose(layer.grad_values(), (up.T @ x).reshape(-1)[layer.flat_sites()], rtol=1e-5, atol=1e-6)
    assert bool((layer.grad_values() != 0).all())
    assert not layer.weight_parameter.grad[~layer.mask].any()


@pytest.mark.parametrize(("optimizer", "lr"), [(torch.optim.Adam, 0.05), (torch.optim.AdamW, 0.05), (torch.optim.RMSprop, 0.02)])
def test_absent_weights_are_exactly_zero_and_it_learns(optimizer, lr):
    torch.manual_seed(0)
    target, layer = torch.randn(8, 12), QuantisedLinear(12, 8, density=0.5, bits=4, seed=0)
    trainer, x = optimizer(layer.parameters(), lr=lr), torch.randn(64, 12)
    losses = []
    for _ in range(60):
        trainer.zero_grad()
        loss = (layer(x) - x @ (target * layer.mask).T).square().mean()
        loss.backward()
        trainer.step()
        layer.enforce()
        assert not layer.weight[~layer.mask].any()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_it_has_second_derivatives_and_maps():
    layer = QuantisedLinear(6, 4, density=0.5, seed=0).double()
    x = torch.randn(3, 6, dtype=torch.float64)
    (grad,) = torch.autograd.grad(layer(x).pow(3).sum(), layer.weight_parameter, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), layer.weight_parameter)
    assert bool((second[layer.mask] != 0).all())
    name = next(key for key, p in layer.named_parameters() if p is layer.weight_parameter)

    def loss(weight, row):
        return functional_call(layer, {name: weight}, (row,)).sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(layer.weight_parameter.detach(), x)
    torch.testing.assert_close(each, layer.mask * x[:, None, :])


@pytest.mark.parametrize("bits", [2, 8])
def test_the_plugin_passes_the_kit(bits):
    assert check(plugin("layer", "quantised", bits=bits)) == []


def test_bits_and_scales_are_counted():
    layer = QuantisedLinear(100, 20, density=0.1, bits=4, seed=0)
    net = nn.Sequential(layer)
    # 200 weights of 4 bits, each with a column of 7, and 21 row starts of 8 bits; a float32 scale per output; the bias
    assert stored_bytes(net) == ((200 * (4 + 7) + 21 * 8) // 8 + 20 * 4 + 20 * 4, 2000 * 4 + 20 * 4)
    assert (layer.value_bits, layer.execution) == (4, "masked_dense")  # of which nothing enters a speed-up


def test_methods_see_the_weights_before_rounding():
    layer = QuantisedLinear(10, 5, density=0.5, bits=2, seed=0)
    conn = layer.connections()
    assert torch.equal(conn.weight, layer.weight_parameter.detach().reshape(-1)[conn.flat])
    assert conn.weight.unique().numel() == 25
    assert not torch.equal(layer.multiplied(), conn.weight)
    assert torch.equal(layer.multiplied(), layer.weight.detach().reshape(-1)[conn.flat])


def test_copies_pickles_and_state_dicts_compute_the_same():
    layer, other = QuantisedLinear(10, 5, bits=3, seed=0, density=0.5), QuantisedLinear(10, 5, bits=3, seed=1, density=0.5)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(3, 10)
    for twin in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.bits == 3
        assert torch.equal(twin(x), layer(x))


def test_convolutions_have_a_scale_per_channel():
    conv = nn.Conv2d(3, 4, 3, bias=False, device="meta")
    weight = torch.randn(4, 27)
    flat = torch.arange(108)
    module = QuantisedModule.from_connections(
        Connections("c", (4, 27), flat // 27, flat % 27, weight.reshape(-1)), None, template=conv, bits=3
    )
    np.testing.assert_allclose(module.weight.detach().reshape(4, 27), by_hand(weight.numpy(), 3), rtol=1e-6, atol=1e-7)


def test_a_sparsifier_trains_on_it_from_the_start():
    """A pruner moves from ``masked`` to the layer asked for; rounding at that moment would change what the network computes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(model, optimizer, pruner="magnitude", layer={"quantised": {"bits": 4}}, density=0.25, total_steps=3)
    assert all(isinstance(module, QuantisedModule) and module.bits == 4 for module in sparsifier.modules.values())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 20)).square().mean().backward()
        sparsifier.step()
    x = torch.randn(3, 20)
    before = model(x)
    assert torch.equal(sparsifier.finish()(x), before)
    assert [module.nnz for module in sparsifier.modules.values()] == [80, 16]
