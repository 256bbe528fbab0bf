"""Patterns to try, and the dense float64 reference of a sparse product and its gradients."""

import torch

from sparsefleet.ops import pattern_of, sparse_linear
from sparsefleet.rng import Rng

TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-13}
"""Of the largest reference value."""


def free_pattern(n_out, n_in, nnz, seed=0):
    flat = Rng("linear", seed).distinct(nnz, n_out * n_in)
    return pattern_of(flat // n_in, flat % n_in, (n_out, n_in))


def constant_pattern(n_out, n_in, k, seed=0):
    gen = torch.Generator().manual_seed(seed)
    col = torch.stack([torch.randperm(n_in, generator=gen)[:k].sort().values for _ in range(n_out)]).flatten()
    return pattern_of(torch.arange(n_out).repeat_interleave(k), col, (n_out, n_in), fan_in=k)


def leaves(pattern, batch, dtype, seed=1):
    gen = torch.Generator().manual_seed(seed)
    n_out, n_in = pattern.shape
    shapes = ((batch, n_in), (pattern.nnz,), (n_out,))
    return [torch.randn(shape, generator=gen, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def dense(pattern, values):
    matrix = torch.zeros(pattern.shape[0] * pattern.shape[1], dtype=torch.float64)
    return matrix.index_put((pattern.flat(),), values.detach().double()).view(pattern.shape)


def assert_close(found, reference, dtype):
    assert float((found.detach().double() - reference).abs().max()) <= TOLERANCE[dtype] * max(1.0, float(reference.abs().max()))


def agree_with_dense(pattern, batch, dtype):
    """Output and every gradient."""
    x, values, bias = leaves(pattern, batch, dtype)
    y = sparse_linear(x, values, pattern, bias)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
    y.backward(grad)
    weight = dense(pattern, values)
    assert_close(y, x.detach().double() @ weight.t() + bias.detach().double(), dtype)
    assert_close(x.grad, grad.double() @ weight, dtype)
    assert_close(values.grad, (grad.double().t() @ x.detach().double()).flatten()[pattern.flat()], dtype)
    assert_close(bias.grad, grad.double().sum(0), dtype)
