"""What torch does to a layer from outside: other numbers, other buffers, other memory; right or refused, never a wrong number."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp

from sparsefleet import kernels
from sparsefleet.connections import Connections
from sparsefleet.errors import UserError
from sparsefleet.nn import AutoLinear, BlockLinear, CsrLinear, FixedFanInLinear, LayerNorm
from sparsefleet.ops import pattern_of, sparse_linear

LAYERS = [CsrLinear, FixedFanInLinear, BlockLinear]
each_layer = pytest.mark.parametrize("kind", LAYERS)


def made(kind, n_in=12, n_out=8, seed=0):
    return kind(n_in, n_out, 0.4, seed=seed)


def gradients(layer, x):
    x = x.clone().requires_grad_()
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, layer.weight_parameter])]


@each_layer
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_numbers_that_are_not_real_are_refused(kind, dtype):
    with pytest.raises(UserError, match=r"takes real floating-point numbers, got torch\."):
        made(kind)(torch.ones(3, 12).to(dtype))


@each_layer
def test_forward_mode_is_refused_and_not_zero(kind):
    layer = made(kind)
    with pytest.raises(UserError, match="no forward-mode derivative"):
        jvp(lambda x: layer(x), (torch.ones(3, 12),), (torch.ones(3, 12),))


def test_another_width_is_refused():
    pattern = pattern_of(torch.tensor([0, 1]), torch.tensor([3, 5]), (2, 12))
    for shape in ((6, 24), (), (3,)):
        with pytest.raises(UserError, match=r"takes \(..., 12\)"):
            sparse_linear(torch.ones(shape), torch.ones(2), pattern)


@each_layer
@pytest.mark.parametrize(("n_in", "n_out"), [(0, 3), (3, 0), (-1, 5), (2.5, 4), (10**10, 10**10)])
def test_sizes_that_are_none_are_refused(kind, n_in, n_out):
    with pytest.raises(UserError, match="must be a whole number from 1"):
        kind(n_in, n_out, 0.5)


@each_layer
def test_connections_of_another_shape_are_refused(kind):
    flat = torch.arange(96)
    conn = Connections("", (8, 12), flat // 12, flat % 12, torch.ones(96))
    with pytest.raises(UserError, match="connections of 8 x 12 units for a layer of 3 x 5"):
        kind(5, 3, connections=conn)
    assert kind(12, 8, connections=conn, dtype=torch.float64).weight_parameter.dtype == torch.float64


def test_a_layer_without_connections_hides_no_overflow():
    empty = pattern_of(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), (3, 12))
    x = torch.full((4, 12), 60_000.0, dtype=torch.float16).requires_grad_()
    y = sparse_linear(x, torch.empty(0), empty)
    y.sum().backward()
    assert y.tolist() == [[0.0] * 3] * 4
    assert x.grad.tolist() == [[0.0] * 12] * 4
    assert sparse_linear(torch.full((4, 12), torch.nan), torch.empty(0), empty).tolist() == [[0.0] * 3] * 4
    layer = made(CsrLinear).double()
    assert layer(torch.ones(0, 12)).dtype == layer(torch.ones(1, 12)).dtype == torch.float64


@each_layer
def test_uninitialised_memory_is_never_an_index(kind):
    layer = made(kind, 300, 200)
    junk = [torch.full_like(buffer, 2**30) for buffer in layer.buffers() for _ in range(4)]
    del junk  # what empty_like may well hand out
    layer.to_empty(device="cpu")
    assert not any(bool(buffer.any()) for buffer in layer.buffers())
    whole = made(kind, 300, 200, seed=3)
    x = torch.randn(5, 300)
    layer.load_state_dict(whole.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(gradients(layer, x), gradients(whole, x), strict=True))


@pytest.mark.parametrize("kind", [CsrLinear, FixedFanInLinear])
def test_states_that_are_assigned(kind):
    """Of another integer type, and onto a layer without memory."""
    whole, x = made(kind, seed=5), torch.randn(4, 12)
    state = {name: part.long() if not part.is_floating_point() else part for name, part in whole.state_dict().items()}
    for layer in (made(kind), made(kind).to("meta")):
        layer.load_state_dict(state, assign=True)
        assert all(torch.equal(a, b) for a, b in zip(gradients(layer, x), gradients(whole, x), strict=True))


@pytest.mark.parametrize("kind", [CsrLinear, FixedFanInLinear])
def test_other_connections_stand_in_for_a_call(kind):
    layer, other, x = made(kind), made(kind, seed=9), torch.randn(4, 12)
    expected, own = gradients(other, x), gradients(layer, x)
    state = {name: part.detach().clone().requires_grad_(part.is_floating_point()) for name, part in other.state_dict().items()}
    leaf = x.clone().requires_grad_()
    y = functional_call(layer, state, leaf)
    found = [y.detach(), *torch.autograd.grad(y.square().sum(), [leaf, state["values_"]])]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(gradients(layer, x), own, strict=True))
    copied = copy.deepcopy(layer)
    assert copied.t_pos is copied.pattern.t_pos  # not made again
    assert all(torch.equal(a, b) for a, b in zip(gradients(copied, x), own, strict=True))


def test_columns_in_two_dimensions_are_refused():
    layer = made(FixedFanInLinear)
    state = layer.state_dict()
    state["col"] = state["col"].view(8, -1)
    with pytest.raises(RuntimeError, match="expected one dimension"):
        layer.load_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_normalised_layers_compile_whole(dtype):
    net = nn.Sequential(made(CsrLinear), LayerNorm(8, relu=True), FixedFanInLinear(8, 5, 0.5, seed=1))
    x = torch.randn(6, 12).to(dtype)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), net(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compiled(x), net(x))


WITH_OTHER_DEFAULTS = """
import torch
from sparsefleet.nn import CsrLinear, FixedFanInLinear
layer = FixedFanInLinear(2000, 2000, 0.05, seed=0)
x = torch.randn(64, 2000)
torch.set_default_dtype(torch.bfloat16)
with torch.device("meta"):
    y = layer(x)  # races two copies of the loops
    sites = layer.flat_sites()
assert y.dtype == torch.float32 and sites.device.type == "cpu" and layer.weight.device.type == "cpu"
"""


def test_other_default_types_and_devices_change_nothing():
    subprocess.run([sys.executable, "-c", WITH_OTHER_DEFAULTS], check=True, timeout=120)


def test_kernels_of_another_source_are_not_used(tmp_path, monkeypatch):
    if kernels.why_not():
        pytest.skip(kernels.why_not())
    source = tmp_path / "kernels.c"
    source.write_bytes(kernels.SOURCE.read_bytes() + b"\n")
    monkeypatch.setattr(kernels, "SOURCE", source)
    kernels._is_fresh.cache_clear()
    try:
        assert "another source" in kernels.why_not()
    finally:
        monkeypatch.undo()
        kernels._is_fresh.cache_clear()
    assert os.environ.get("SPARSEFLEET_KERNELS") is None
    assert not kernels.why_not()


def test_a_fan_in_or_a_batch_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"a fan-in of 2\.5 does not fit"):
        FixedFanInLinear(12, 8, fan_in=2.5)
    for batch_size in (0, -1):
        with pytest.raises(UserError, match="batch_size must be at least 1"):
            AutoLinear(12, 8, batch_size=batch_size)
