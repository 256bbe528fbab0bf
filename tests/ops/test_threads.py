"""Work that is shared out among threads gives the right results, and the same in every run; below a size nothing is shared out."""

import pytest
import torch
from dense_reference import agree_with_dense, constant_pattern, free_pattern, leaves

from sparsefleet.ops import native, sparse_linear

pytestmark = pytest.mark.skipif(bool(native.why_not()), reason=f"kernels: {native.why_not()}")

NNZ = 120_000
"""More than the kernels' SERIAL even for a batch of one."""


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 64, 100])
@pytest.mark.parametrize("make", [lambda: free_pattern(400, 500, NNZ), lambda: constant_pattern(400, 500, 300)], ids=["free", "constant"])
def test_output_and_gradients(make, batch, threads):
    agree_with_dense(make(), batch, torch.float32)


def test_double_precision(threads):
    agree_with_dense(free_pattern(400, 500, NNZ), 3, torch.float64)


@pytest.mark.parametrize("batch", [1, 3, 64, 100])
def test_equal_bits_in_every_run(batch, threads):
    pattern = free_pattern(400, 500, NNZ)
    x, values, bias = leaves(pattern, batch, torch.float32)
    runs = []
    for _ in range(3):
        y = sparse_linear(x, values, pattern, bias)
        runs.append([y.detach(), *torch.autograd.grad(y.square().sum(), (x, values, bias))])
    assert all(torch.equal(a, b) for other in runs[1:] for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("batch", [64, 100])
def test_the_number_of_threads_changes_no_bit_of_a_larger_batch(batch, threads):
    """Every element is summed by one thread in one order; only batches of up to four add up per thread."""
    pattern = free_pattern(700, 900, 30_000)
    x, values, bias = leaves(pattern, batch, torch.float32)
    found = []
    for n in (threads, 2, 1):
        torch.set_num_threads(n)
        y = sparse_linear(x, values, pattern, bias)
        found.append([y.detach(), *torch.autograd.grad(y.square().sum(), (x, values))])
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("shape", [(300, 1000), (1000, 300), (7, 40_000)])
def test_turning(shape, threads):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(native.transposed(x), x.t().contiguous())
