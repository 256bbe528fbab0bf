import pytest
import torch

from sparsefleet.ops.csr import csr_linear, csr_pattern, top_absent_products
from sparsefleet.rng import Rng


def sample(n_out=7, n_in=11, nnz=20, batch=5, seed=0, dtype=torch.float64):
    gen = torch.Generator().manual_seed(seed)
    flat = Rng("csr", seed).distinct(nnz, n_out * n_in)
    values = torch.randn(nnz, generator=gen, dtype=dtype)
    x = torch.randn(batch, n_in, generator=gen, dtype=dtype)
    bias = torch.randn(n_out, generator=gen, dtype=dtype)
    dense = torch.zeros(n_out * n_in, dtype=dtype).index_put((flat,), values).view(n_out, n_in)
    return flat, values, x, bias, dense, csr_pattern(flat // n_in, flat % n_in, (n_out, n_in))


def test_output_and_all_gradients_equal_the_dense_ones():
    flat, values, x, bias, dense, pattern = sample()
    leaves = [t.clone().requires_grad_() for t in (x, values, bias)]
    dense_leaves = [t.clone().requires_grad_() for t in (x, dense, bias)]
    upstream = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    out = csr_linear(leaves[0], leaves[1], pattern, leaves[2])
    reference = torch.nn.functional.linear(*dense_leaves)
    torch.testing.assert_close(out, reference)
    out.backward(upstream)
    reference.backward(upstream)
    torch.testing.assert_close(leaves[0].grad, dense_leaves[0].grad)
    torch.testing.assert_close(leaves[1].grad, dense_leaves[1].grad.view(-1)[flat])
    torch.testing.assert_close(leaves[2].grad, dense_leaves[2].grad)


def test_gradcheck():
    _, values, x, bias, _, pattern = sample(4, 5, 8, 3)
    inputs = [t.requires_grad_() for t in (x, values, bias)]
    assert torch.autograd.gradcheck(lambda a, v, b: csr_linear(a, v, pattern, b), inputs)


@pytest.mark.parametrize("shape", [(11,), (1, 11), (2, 3, 11), (0, 11)])
def test_any_leading_dimensions(shape):
    _, values, _, bias, dense, pattern = sample()
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(csr_linear(x, values, pattern, bias), torch.nn.functional.linear(x, dense, bias))


def test_a_layer_without_connections_gives_its_bias_and_zero_gradients():
    pattern = csr_pattern(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), (3, 4))
    x, values = torch.randn(2, 4, requires_grad=True), torch.empty(0, requires_grad=True)
    out = csr_linear(x, values, pattern, torch.ones(3))
    assert torch.equal(out, torch.ones(2, 3))
    out.sum().backward()
    assert torch.equal(x.grad, torch.zeros(2, 4))


def test_backward_holds_nothing_of_size_out_by_in():
    n, nnz = 30_000, 2000
    flat = Rng("big").distinct(nnz, n * n)
    pattern = csr_pattern(flat // n, flat % n, (n, n))
    values = torch.randn(nnz, requires_grad=True)
    x = torch.randn(2, n, requires_grad=True)
    csr_linear(x, values, pattern).sum().backward()  # the dense gradient would be 3.6 GB
    assert values.grad.shape == (nnz,)
    assert x.grad.shape == (2, n)


def test_bfloat16_inputs_under_autocast():
    _, values, x, bias, dense, pattern = sample(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = csr_linear(x.bfloat16(), values, pattern, bias)
    torch.testing.assert_close(out.float(), torch.nn.functional.linear(x, dense, bias), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("k", [0, 1, 5, 40])
@pytest.mark.parametrize("seed", range(4))
def test_best_absent_products_equal_the_dense_search(k, seed, monkeypatch):
    for name, value in (("_TILE_ROWS", 2), ("_TILE_COLS", 4), ("_FIRST_UNITS", 3), ("_SAMPLE", 6)):  # many tiles, several rounds
        monkeypatch.setattr(f"sparsefleet.ops.csr.{name}", value)
    gen = torch.Generator().manual_seed(seed)
    x, grad = torch.randn(6, 13, generator=gen, dtype=torch.float64), torch.randn(6, 9, generator=gen, dtype=torch.float64)
    grad *= torch.logspace(0, -6, 9, dtype=torch.float64)  # most blocks can be skipped
    present = Rng("present", seed).distinct(30, 9 * 13)
    score = (grad.t() @ x).abs().reshape(-1)
    score[present] = -1
    expected = torch.sort(torch.argsort(score, descending=True, stable=True)[:k]).values
    found = top_absent_products(x, grad, present, k)
    assert torch.equal(found[0] * 13 + found[1], expected)


def test_ties_among_products_go_by_position():
    x, grad = torch.ones(1, 6), torch.ones(1, 4)
    found = top_absent_products(x, grad, torch.tensor([0, 2]), 3)
    assert (found[0] * 6 + found[1]).tolist() == [1, 3, 4]
