"""What nobody should do to a sparse layer, and what becomes of it: a sentence, never a wrong number or a crash."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from sparsefleet.connections import Connections
from sparsefleet.errors import InvalidMask, PluginError, UserError
from sparsefleet.nn import CsrLinear, FixedFanInLinear, LayerNorm, MaskedLinear, Sparsifier, remap_sites
from sparsefleet.nn.masked import MaskedModule
from sparsefleet.ops import native, sparse_linear
from sparsefleet.ops.csr import top_absent_products


@pytest.mark.parametrize("zero", ["x", "grad", "both"])
def test_growing_by_a_gradient_of_zeros_ends(zero):
    x, grad = torch.randn(4, 50), torch.randn(4, 60)
    for name, side in (("x", x), ("grad", grad)):
        if zero in (name, "both"):
            side.zero_()
    sites = top_absent_products(x, grad, torch.arange(5), 7)
    assert sites.shape == (2, 7) and not bool(torch.isin(sites[0] * 50 + sites[1], torch.arange(5)).any())


def test_many_sites_of_a_gradient_that_is_not_a_number_are_an_error():
    layer = CsrLinear(300, 300, 0.01, seed=0)
    layer.watch_absent(True)
    layer(torch.full((2, 300), float("nan"))).sum().backward()
    with pytest.raises(PluginError, match="has diverged"):
        layer.best_absent(layer.flat_sites(), 1 << 15)


def test_a_layer_used_twice_grows_by_the_sum_of_both_uses():
    layer = CsrLinear(6, 6, 0.2, seed=0)
    layer.watch_absent(True)
    x = torch.randn(3, 6)
    layer(layer(x)).sum().backward()
    weight = layer.weight.to_dense().requires_grad_()
    (((x @ weight.t() + layer.bias.detach()) @ weight.t()) + layer.bias.detach()).sum().backward()
    absent = weight.grad.abs().flatten()
    absent[layer.flat_sites()] = -1
    wanted = torch.sort(torch.topk(absent, 4).indices).values
    found = layer.best_absent(layer.flat_sites(), 4)
    assert torch.equal(found[0] * 6 + found[1], wanted)


@pytest.mark.skipif(bool(native.why_not()), reason=f"kernels: {native.why_not()}")
def test_a_pickled_layer_is_right_where_there_are_no_panels(tmp_path):
    layer = CsrLinear(1000, 8000, 0.2, seed=0)
    assert layer.pattern.panels > 1
    x = torch.randn(5, 1000, requires_grad=True)
    layer(x).sum().backward()
    torch.save((layer, x.detach(), x.grad), tmp_path / "layer")
    script = (
        "import sys, torch\n"
        "layer, x, wanted = torch.load(sys.argv[1], weights_only=False)\n"
        "x.requires_grad_()\n"
        "layer(x).sum().backward()\n"
        "torch.testing.assert_close(x.grad, wanted, rtol=1e-4, atol=1e-4)\n"
    )
    environment = {**os.environ, "SPARSEFLEET_KERNELS": "off"}
    command = [sys.executable, "-c", script, str(tmp_path / "layer")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_sizes_that_do_not_fit_are_refused():
    layer = FixedFanInLinear(20, 30, fan_in=5, seed=0)
    x = torch.randn(6, 20)
    with pytest.raises(UserError, match=r"a bias of shape \(10,\) for 30"):
        sparse_linear(x, layer.values_, layer.pattern, torch.zeros(10))
    with pytest.raises(UserError, match="149 values for 150"):
        sparse_linear(x, layer.values_.flatten()[1:], layer.pattern)
    with pytest.raises(UserError, match="different devices: cpu, meta"):
        sparse_linear(x.to("meta"), layer.values_, layer.pattern)


def test_strides_do_not_matter():
    layer = FixedFanInLinear(20, 30, fan_in=5, seed=0)
    x, wide = torch.randn(8, 20), torch.stack([layer.values_.detach().flatten()] * 2, 1)
    wanted = sparse_linear(x, layer.values_, layer.pattern, torch.ones(30))
    assert torch.equal(sparse_linear(x, wide[:, 0], layer.pattern, torch.ones(1).expand(30)), wanted)
    norm, y = LayerNorm(30), wanted.detach()
    strided = torch.stack([norm.weight.detach() * 2] * 2, 1)[:, 0]
    from sparsefleet.ops import layer_norm

    assert torch.equal(layer_norm(y, strided, norm.bias), layer_norm(y, strided.clone(), norm.bias))


def test_an_emptied_layer_does_not_crash():
    layer = CsrLinear(2000, 3000, 0.01, seed=0)
    state = copy.deepcopy(layer.state_dict())
    empty = CsrLinear(2000, 3000, 0.01, seed=1).to("meta").to_empty(device="cpu")
    empty.load_state_dict(state)
    x = torch.randn(5, 2000)
    assert torch.equal(empty(x), layer(x))


def test_a_refused_state_leaves_the_layer_as_it_was():
    layer, x = CsrLinear(20, 30, 0.2, seed=0), torch.randn(5, 20)
    before = layer(x)
    with pytest.raises(RuntimeError, match="lie outside"):
        layer.load_state_dict(CsrLinear(2_000, 30, 0.002, seed=0).state_dict())
    assert torch.equal(layer(x), before)
    with pytest.raises(RuntimeError, match="without the rest"):
        layer.load_state_dict({"col": layer.col + 1}, strict=False)
    assert torch.equal(layer(x), before)


def test_an_index_of_wide_integers_is_narrowed():
    layer, other, x = CsrLinear(20, 30, 0.2, seed=0), CsrLinear(20, 30, 0.2, seed=1), torch.randn(5, 20)
    other.load_state_dict({name: t.long() if not t.is_floating_point() else t for name, t in layer.state_dict().items()})
    assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda state: {"crow": torch.tensor([0, 2**63 - 1, -2, *[state["col"].numel()] * 28])},  # differences that wrap around
        lambda state: {"crow": state["crow"].double() + 0.5},
        lambda state: {"col": torch.full(state["col"].shape, float("nan"))},
    ],
)
def test_an_index_that_only_looks_right_is_refused(wrong):
    layer, x = CsrLinear(20, 30, 0.2, seed=0), torch.randn(5, 20)
    before = layer(x)
    with pytest.raises(RuntimeError, match=r"expected integers|row pointer does not divide"):
        layer.load_state_dict(layer.state_dict() | wrong(layer.state_dict()))
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        (lambda weight: weight.detach(), "24 of 24 values are neither 0 nor 1"),
        (lambda weight: weight.detach().view(torch.bool)[:, :6], "in the weight's memory"),
        (lambda weight: torch.ones(4, 6), "not bool"),
        (lambda weight: torch.ones(6, 4, dtype=torch.bool), "its shape"),
        (lambda weight: torch.ones(6, 4, dtype=torch.bool).T, "not contiguous"),
        (lambda weight: torch.ones(4, 6, dtype=torch.bool, device="meta"), "meta"),
        (lambda weight: torch.zeros(4, 6, dtype=torch.bool), "no connection"),
    ],
)
def test_what_is_no_mask_of_the_weight_is_refused(mask, why):
    inner = torch.nn.Linear(6, 4)
    with pytest.raises(InvalidMask) as told:
        MaskedModule(inner, mask(inner.weight))
    assert why in str(told.value)


def test_a_stored_mask_that_is_not_bool_is_refused_and_nothing_of_it_is_taken():
    layer, x = MaskedLinear(20, 30, 0.2, seed=0), torch.randn(5, 20)
    before = layer(x)
    other = MaskedLinear(20, 30, 0.2, seed=1).state_dict()
    name = next(name for name in other if name.endswith("mask"))
    with pytest.raises(RuntimeError, match=r"a mask of torch\.float32 \(30, 20\), expected bool"):
        layer.load_state_dict(other | {name: torch.full((30, 20), float("nan"))})
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("keep", [torch.ones(100, dtype=torch.bool), torch.arange(200)])
def test_what_stays_must_be_a_mask_of_all(keep):
    with pytest.raises(PluginError, match=r"must be \(200,\) bool"):
        remap_sites(torch.arange(0, 400, 2), keep, torch.tensor([1, 3]), regrown_are_kept=False)


@pytest.mark.parametrize("col", [[1, 50_000_000, 2], [1, 0, 2], [1, 1, 2]])
def test_connections_that_lie_outside_or_do_not_ascend_are_refused(col):
    with pytest.raises(InvalidMask, match="1 of 3 connections"):
        CsrLinear.from_connections(Connections("", (2, 4), torch.tensor([0, 0, 1]), torch.tensor(col), torch.ones(3)), None)


def test_a_second_derivative_is_refused():
    layer = CsrLinear(20, 30, 0.2, seed=0)
    x = torch.randn(5, 20, requires_grad=True)
    (by_x,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivative only"):
        by_x.square().sum().backward()


def test_what_is_given_whole_draws_nothing():
    conn = CsrLinear(20, 30, 0.2, seed=0).connections()
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    CsrLinear.from_connections(conn, None)
    assert torch.equal(torch.rand(3), wanted)


def test_a_frozen_masked_layer_stays_frozen():
    layer = MaskedLinear(8, 8, 0.5, seed=0)
    layer.weight_parameter.requires_grad_(False)
    assert not copy.deepcopy(layer).weight_parameter.requires_grad


def test_a_sparsifier_refuses_what_it_cannot_replace():
    root = nn.Linear(20, 20)
    with pytest.raises(UserError, match="is itself a Linear"):
        Sparsifier(root, torch.optim.SGD(root.parameters(), lr=0.1), rewirer="set", density=0.1, total_steps=10)
    tied = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20))
    tied[2].weight = tied[0].weight
    with pytest.raises(UserError, match=r"0\.weight is shared"):
        Sparsifier(tied, torch.optim.SGD(tied.parameters(), lr=0.1), rewirer="set", density=0.1, total_steps=10)


@pytest.mark.parametrize("make", [CsrLinear, FixedFanInLinear])
def test_sparse_modules_are_pruned_on_with_their_slots(make):
    torch.manual_seed(0)
    model = nn.Sequential(make(20, 20, 0.5), nn.ReLU(), nn.Linear(20, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = torch.randn(8, 20)
    model(x).square().sum().backward()
    optimizer.step()
    sparsifier = Sparsifier(model, optimizer, pruner="magnitude", density=0.2, total_steps=2)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        sparsifier.step()
    sparsifier.finish()
    assert torch.isfinite(model(x)).all()
