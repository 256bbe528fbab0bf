"""y = x Wᵀ for W in CSR, with a backward that never holds out × in, in plain torch.

torch's own ``sparse.mm`` backward forms the whole dense gradient. Here the input's gradient is a product with the cached transpose and the
weight's gradient a sampled product at the stored positions (``torch.sparse.sampled_addmm``). On the CPU both run in MKL, on CUDA in cuSPARSE.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

with warnings.catch_warnings():  # torch says once per process that CSR is in beta; our users did not choose it
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    torch.sparse_csr_tensor([0, 0], torch.empty(0, dtype=torch.int64), torch.empty(0), (1, 1), check_invariants=False)

_INT32_MAX = 2**31 - 1
_BLOCK_ELEMENTS = 1 << 19


class CsrPattern(NamedTuple):
    """Where W and Wᵀ have entries. Indices are int32 wherever they fit."""

    shape: tuple[int, int]
    crow: Tensor
    """``(n_out + 1,)``"""
    col: Tensor
    """``(nnz,)``"""
    t_crow: Tensor
    """``(n_in + 1,)``: the transpose's row pointer."""
    t_col: Tensor
    """``(nnz,)``: the transpose's columns, that is output units."""
    t_order: Tensor
    """``(nnz,)`` int64: position in W of the transpose's entries."""


def csr_pattern(row: Tensor, col: Tensor, shape: tuple[int, int]) -> CsrPattern:
    """The pattern of connections given in ascending order of (row, col).

    Args:
        row: ``(nnz,)`` int64.
        col: ``(nnz,)`` int64.
        shape: ``(n_out, n_in)``.
    """
    kind = torch.int32 if max(*shape, row.numel()) <= _INT32_MAX else torch.int64
    order = torch.argsort(col, stable=True)
    return CsrPattern(shape, _pointer(row, shape[0], kind), col.to(kind), _pointer(col, shape[1], kind), row[order].to(kind), order)


def _pointer(index: Tensor, n: int, kind: torch.dtype) -> Tensor:
    pointer = torch.zeros(n + 1, dtype=kind, device=index.device)
    torch.cumsum(torch.bincount(index, minlength=n), 0, out=pointer[1:], dtype=kind) if index.numel() else None
    return pointer


def _csr(crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=False)  # the layer checked its connections once


class _CsrLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, pattern: CsrPattern) -> Tensor:
        ctx.save_for_backward(x, values)
        ctx.pattern = pattern
        return (_csr(pattern.crow, pattern.col, values, pattern.shape) @ x.t()).t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, values = ctx.saved_tensors
        pattern: CsrPattern = ctx.pattern
        grad_x = grad_values = None
        if ctx.needs_input_grad[0]:
            transposed = _csr(pattern.t_crow, pattern.t_col, values[pattern.t_order], (pattern.shape[1], pattern.shape[0]))
            grad_x = (transposed @ grad.t()).t()
        if ctx.needs_input_grad[1]:
            zeros = _csr(pattern.crow, pattern.col, torch.zeros_like(values), pattern.shape)
            grad_values = torch.sparse.sampled_addmm(zeros, grad.t(), x, beta=0.0).values()
        return grad_x, grad_values, None


def csr_linear(x: Tensor, values: Tensor, pattern: CsrPattern, bias: Tensor | None = None) -> Tensor:
    """``x Wᵀ + bias`` with gradients for x, values and bias.

    Half-precision inputs are multiplied in float32, since the sparse libraries behind torch have no such kernels on every device.

    Args:
        x: ``(..., n_in)``.
        values: ``(nnz,)`` in the order of ``pattern``.
        bias: ``(n_out,)``.

    Returns:
        ``(..., n_out)`` in x's dtype.
    """
    n_out, n_in = pattern.shape
    flat = x.reshape(-1, n_in)
    wide = values.dtype if values.dtype in (torch.float32, torch.float64) else torch.float32
    if values.numel() == 0 or flat.shape[0] == 0:  # the libraries refuse empty operands
        out = flat.new_zeros((flat.shape[0], n_out)) + (flat.sum() + values.sum()) * 0
    else:
        with torch.autocast(flat.device.type, enabled=False):
            out = _CsrLinear.apply(flat.to(wide), values.to(wide), pattern).to(x.dtype)
    if bias is not None:
        out = out + bias.to(out.dtype)
    return out.reshape(*x.shape[:-1], n_out)


def top_absent_products(x: Tensor, grad: Tensor, present: Tensor, k: int) -> Tensor:
    """``(2, k)`` absent sites with the largest ``|gradᵀ x|``, ties by position, ascending; never holds out × in.

    Exact: output units are visited in order of the norm of their gradient column, and a block of products is skipped only when the
    Cauchy–Schwarz bound of its norms lies below the k-th best product found so far.

    Args:
        x: ``(batch, n_in)`` the layer's input.
        grad: ``(batch, n_out)`` the gradient of the loss by its output.
        present: ``(nnz,)`` int64 ascending flat positions that do not count.
        k: at most the number of absent sites.
    """
    n_in, n_out = x.shape[1], grad.shape[1]
    x_norm, x_order = torch.sort(_column_norm(x), descending=True, stable=True)
    g_norm, g_order = torch.sort(_column_norm(grad), descending=True, stable=True)
    best, where = x.new_empty(0, dtype=x.dtype), present.new_empty(0)
    ascending_norm = x_norm.flip(0)
    slack = 1.0 + 1e-5  # a product may exceed its bound by rounding
    start = 0
    while start < n_out and k:
        floor = best[-1] if best.numel() == k else best.new_tensor(-1.0)
        if bool(g_norm[start] * x_norm[0] * slack < floor):
            break
        useful = n_in
        if bool(floor > 0):
            limit = floor / (g_norm[start] * slack)
            useful = n_in - int(torch.searchsorted(ascending_norm, limit))
        cols = min(max(useful, 1), _BLOCK_ELEMENTS)
        rows = max(1, min(_BLOCK_ELEMENTS // cols, n_out - start))
        chosen_rows = g_order[start : start + rows]
        for first in range(0, useful, cols):
            chosen_cols = x_order[first : min(first + cols, useful)]
            best, where = _merge(best, where, (x[:, chosen_cols], grad[:, chosen_rows]), (chosen_rows, chosen_cols), present, (k, n_in))
        start += rows
    flat = torch.sort(where).values
    return torch.stack([flat // n_in, flat % n_in])


def _column_norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=0)
    return norm


def _merge(
    best: Tensor,
    where: Tensor,
    operands: tuple[Tensor, Tensor],
    units: tuple[Tensor, Tensor],
    present: Tensor,
    limits: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """The k best of ``best`` and one block of products, highest first, ties by position."""
    (k, n_in), (rows, cols) = limits, units
    score = (operands[1].t() @ operands[0]).abs_().reshape(-1)
    floor = best[-1] if best.numel() == k else score.new_tensor(-1.0)
    hit = torch.nonzero(score >= floor).flatten()
    n_candidates = k + present.numel()  # present sites fall out below
    if hit.numel() > n_candidates:
        kth = torch.topk(score[hit], n_candidates).values[-1]
        hit = hit[score[hit] >= kth]
    flat = rows[hit // cols.numel()] * n_in + cols[hit % cols.numel()]
    if present.numel():
        at = torch.searchsorted(present, flat).clamp_(max=present.numel() - 1)
        absent = present[at] != flat
        hit, flat = hit[absent], flat[absent]
    values, flat = torch.cat([best, score[hit]]), torch.cat([where, flat])
    order = torch.argsort(flat)
    order = order[torch.argsort(values[order], descending=True, stable=True)][:k]
    return values[order], flat[order]
