"""The sparse product and its gradients against a dense matrix in float64."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from dense_reference import agree_with_dense, assert_close, constant_pattern, dense, free_pattern, leaves

from sparsefleet.ops import engine, native, pattern_from, pattern_of, row_major, sparse_linear
from sparsefleet.rng import Rng

BATCHES = (1, 2, 3, 4, 5, 15, 16, 17, 32, 33, 64, 65, 130, 200)
pytestmark = pytest.mark.skipif(bool(native.why_not()), reason=f"kernels: {native.why_not()}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    "make", [lambda: free_pattern(37, 53, 261), lambda: constant_pattern(37, 53, 7), lambda: free_pattern(300, 20, 4000)]
)
def test_output_and_gradients(make, batch, dtype):
    agree_with_dense(make(), batch, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 5, 64, 65, 130, 200])
@pytest.mark.parametrize("make", [lambda: free_pattern(300, 20, 4000), lambda: constant_pattern(300, 20, 14)])
def test_output_and_gradients_of_several_panels(make, batch, dtype, monkeypatch):
    monkeypatch.setattr("sparsefleet.ops.pattern._PANEL_BYTES", 4000)
    pattern = make()
    assert pattern.panels == (4 if pattern.fan_in is None else 5)
    agree_with_dense(pattern, batch, dtype)


@pytest.mark.parametrize("kinds", [(torch.float32, torch.float64), (torch.float64, torch.float32)])
@pytest.mark.parametrize("batch", [3, 16])
def test_one_double_operand_makes_the_product_double(batch, kinds):
    pattern = free_pattern(37, 53, 261)
    x, values, bias = leaves(pattern, batch, torch.float64)
    x, values = (part.detach().to(kind).requires_grad_() for part, kind in zip((x, values), kinds, strict=True))
    y = sparse_linear(x, values, pattern, bias)
    assert y.dtype == torch.float64
    weight = dense(pattern, values)
    assert_close(y, x.detach().double() @ weight.t() + bias.detach(), torch.float64)
    y.sum().backward()
    assert (x.grad.dtype, values.grad.dtype) == kinds
    assert_close(x.grad, torch.ones(batch, 37, dtype=torch.float64) @ weight, kinds[0])
    assert_close(values.grad, x.detach().double().sum(0).expand(37, 53).flatten()[pattern.flat()], kinds[1])


def test_empty_rows_and_columns():
    """Output units without an input give their bias, inputs without an output get no gradient."""
    pattern = pattern_of(torch.tensor([1, 1]), torch.tensor([0, 2]), (3, 4))
    x, values, bias = leaves(pattern, 16, torch.float32)
    y = sparse_linear(x, values, pattern, bias)
    y.sum().backward()
    assert torch.equal(y[:, 0], bias[0].expand(16)) and torch.equal(y[:, 2], bias[2].expand(16))
    assert torch.equal(x.grad[:, 1], torch.zeros(16)) and torch.equal(x.grad[:, 3], torch.zeros(16))
    assert torch.equal(x.grad[:, 0], values.detach()[0].expand(16))


@pytest.mark.parametrize("fan_in", [None, 0])
def test_no_connections(fan_in):
    pattern = pattern_of(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), (3, 4), fan_in=fan_in)
    x, values, bias = leaves(pattern, 5, torch.float32)
    y = sparse_linear(x, values, pattern, bias)
    y.sum().backward()
    assert torch.equal(y, bias.detach().expand(5, 3)) and not x.grad.any() and values.grad.shape == (0,)


@pytest.mark.parametrize("shape", [(53,), (1, 53), (2, 3, 53), (0, 53)])
def test_leading_dimensions(shape):
    pattern = free_pattern(37, 53, 261)
    _, values, bias = leaves(pattern, 1, torch.float32)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3), requires_grad=True)
    y = sparse_linear(x, values, pattern, bias)
    y.sum().backward()
    assert y.shape == (*shape[:-1], 37) and x.grad.shape == shape
    if y.numel():
        reference = x.detach().double().reshape(-1, 53) @ dense(pattern, values).t() + bias.detach().double()
        assert_close(y.detach().reshape(-1, 37), reference, torch.float32)


def test_the_layout_persists():
    """What comes out is feature-major, and goes into the next layer as it is."""
    first, second = free_pattern(300, 200, 900), free_pattern(100, 300, 900, seed=1)
    x, values, _ = leaves(first, 64, torch.float32)
    y = sparse_linear(x, values, first)
    assert y.stride() == (1, 64)
    z = sparse_linear(torch.relu(y), leaves(second, 64, torch.float32)[1], second)
    assert z.stride() == (1, 64)
    kept = []
    y.register_hook(lambda grad: kept.append(grad.stride()))
    z.sum().backward()
    assert kept == [(1, 64)]


def test_gradcheck():
    pattern = free_pattern(9, 11, 30)
    assert torch.autograd.gradcheck(lambda x, v, b: sparse_linear(x, v, pattern, b), leaves(pattern, 6, torch.float64))


@pytest.mark.parametrize("pattern", [free_pattern(9, 11, 30), constant_pattern(9, 11, 3)], ids=["free", "constant"])
def test_opcheck(pattern):
    x, values, bias = leaves(pattern, 6, torch.float32)
    fan_in = -1 if pattern.fan_in is None else pattern.fan_in
    index = (pattern.crow, pattern.col, pattern.t_ptr, pattern.t_row, pattern.t_pos, 11, fan_in, pattern.panels)
    torch.library.opcheck(torch.ops.sparsefleet.linear.default, (x, values, bias, *index))
    grad, x, values = torch.randn(6, 9), x.detach(), values.detach()
    for needs in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(torch.ops.sparsefleet.linear_backward.default, (grad, x, values, *index, *needs))


def test_opcheck_of_the_turn():
    for x in (torch.randn(6, 5, requires_grad=True), torch.randn(5, 6).t().requires_grad_()):
        torch.library.opcheck(torch.ops.sparsefleet.feature_major.default, (x,))
        torch.library.opcheck(torch.ops.sparsefleet.row_major.default, (x,))


@pytest.mark.parametrize("shape", [(1, 7), (16, 16), (5, 3), (33, 70), (130, 300), (300, 1000)])
def test_turning_there_and_back(shape):
    x = torch.randn(shape, requires_grad=True)
    turned = torch.ops.sparsefleet.feature_major(x)
    assert turned.stride() == (1, shape[0]) and torch.equal(turned, x)
    back = row_major(turned)
    assert back.is_contiguous() and torch.equal(back, x)
    (grad,) = torch.autograd.grad(back.square().sum(), x)
    assert grad.is_contiguous() and torch.equal(grad, 2 * x)


def test_a_row_major_input_is_turned_once_a_step(monkeypatch):
    turned, plain = [], native.transposed
    monkeypatch.setattr(native, "transposed", lambda x: turned.append(x.shape) or plain(x))
    pattern = free_pattern(37, 53, 261)
    x, values, _ = leaves(pattern, 16, torch.float32)
    sparse_linear(x, values, pattern).square().sum().backward()
    assert turned == [(16, 53), (53, 16)] and x.grad.is_contiguous()  # the input, and its gradient back


def test_gradients_only_where_asked():
    pattern = free_pattern(37, 53, 261)
    x, values, bias = leaves(pattern, 16, torch.float32)
    sparse_linear(x.detach(), values, pattern, bias.detach()).sum().backward()
    wanted = values.grad.clone()
    assert x.grad is None and bias.grad is None
    sparse_linear(x, values.detach(), pattern).sum().backward()
    assert torch.equal(values.grad, wanted)
    assert_close(x.grad, torch.ones(16, 37).double() @ dense(pattern, values), torch.float32)


def test_panels_list_every_entry_once_and_change_nothing(monkeypatch):
    """Many values for few columns are cut into panels of rows, listed by panel, column and row."""
    whole = free_pattern(4000, 60, 120_000)
    monkeypatch.setattr("sparsefleet.ops.pattern._PANEL_BYTES", 100_000)
    pattern = pattern_from(whole.crow, whole.col, whole.shape)
    assert (whole.panels, pattern.panels) == (1, 5)
    x, values, _ = leaves(pattern, 64, torch.float32)
    found = [torch.autograd.grad(sparse_linear(x, values, one).square().sum(), (x, values)) for one in (whole, pattern)]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    height = -(-4000 // pattern.panels)
    row, col = pattern.t_row.long(), pattern.flat()[pattern.t_pos.long()] % 60
    key = (row // height * 60 + col) * 4000 + row
    assert bool((key.diff() > 0).all())
    counts = torch.bincount(row // height * 60 + col, minlength=pattern.panels * 60)
    assert torch.equal(pattern.t_ptr.long(), torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]))


@pytest.mark.parametrize(("fan_in", "n_out", "n_in"), [(1, 5, 3), (3, 1, 3), (7, 4001, 90), (49, 3000, 60), (200, 501, 2000)])
def test_the_transposed_index_of_a_constant_fan_in_is_that_of_its_rows(fan_in, n_out, n_in):
    flat = Rng("rows", fan_in).distinct_in_groups(torch.full((n_out,), fan_in), torch.full((n_out,), n_in))
    crow = torch.arange(n_out + 1, dtype=torch.int32) * fan_in
    col = (flat % n_in).int()
    same, free = pattern_from(crow[:0], col, (n_out, n_in), fan_in=fan_in), pattern_from(crow, col, (n_out, n_in))
    assert torch.equal(same.flat(), flat)
    assert torch.equal(free.flat(), flat)
    for name in ("t_ptr", "t_row", "t_pos"):
        assert torch.equal(getattr(same, name), getattr(free, name))


@pytest.mark.parametrize("batch", [64, 128])
def test_both_copies_of_a_loop_give_the_same_bits(batch):
    pattern = free_pattern(700, 900, 30_000)
    x, values, _ = leaves(pattern, batch, torch.float32)
    found = []
    for which in (0, 1):
        native.library().sf_place(which, which)
        y = sparse_linear(x, values, pattern)
        found.append([y.detach(), *torch.autograd.grad(y.square().sum(), (x, values))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_half_precision_comes_out_as_it_went_in():
    pattern = free_pattern(37, 53, 261)
    x, values, bias = leaves(pattern, 16, torch.float32)
    wide = sparse_linear(x, values, pattern, bias)
    narrow = sparse_linear(x.to(torch.bfloat16), values, pattern, bias)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), wide, rtol=2e-2, atol=3e-2)
    with torch.autocast("cpu", torch.bfloat16):
        assert sparse_linear(x, values, pattern, bias).dtype == torch.bfloat16


def test_a_pattern_survives_copies():
    pattern = free_pattern(37, 53, 261)
    again = pattern_from(pattern.crow, pattern.col, pattern.shape)
    for name in ("crow", "col", "t_ptr", "t_row", "t_pos"):
        assert torch.equal(getattr(again, name), getattr(copy.deepcopy(pattern), name))


WITHOUT = """
import torch
from sparsefleet.ops import engine, pattern_of, sparse_linear
from sparsefleet.rng import Rng

assert engine("cpu") == ("torch", "SPARSEFLEET_KERNELS=off"), engine("cpu")
constant = torch.arange(37).repeat_interleave(7) * 53 + torch.arange(7).repeat(37) * 5
for flat, fan_in in ((Rng("linear", 0).distinct(261, 37 * 53), None), (constant, 7)):
    p = pattern_of(flat // 53, flat % 53, (37, 53), fan_in=fan_in)
    x = torch.randn(16, 53, generator=torch.Generator().manual_seed(1)).requires_grad_()
    v = torch.randn(p.nnz, generator=torch.Generator().manual_seed(2)).requires_grad_()
    y = sparse_linear(x, v, p, torch.ones(37))
    w = torch.zeros(37 * 53).index_put((p.flat(),), v.detach()).view(37, 53)
    torch.testing.assert_close(y, x @ w.t() + 1, rtol=1e-4, atol=1e-5)
    y.square().sum().backward()
    g = 2 * y.detach()
    torch.testing.assert_close(x.grad, g @ w, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(v.grad, (g.t() @ x.detach()).flatten()[p.flat()], rtol=1e-4, atol=1e-4)
"""


def test_without_the_kernels_torch_gives_the_same():
    """The fallback is chosen by the setting, and agrees."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], env={**os.environ, "SPARSEFLEET_KERNELS": "off"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_engine_says_why():
    assert engine("cpu").name == "native" and engine("cpu").reason == ""
    assert engine("meta") == ("torch", "no kernels for meta")
