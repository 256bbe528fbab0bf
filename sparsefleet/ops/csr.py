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
_FIRST_UNITS = 1 << 14
_SAMPLE = 1 << 16
_TILE_ROWS, _TILE_COLS = 256, 2048
_SLACK = 1.0 + 1e-5  # a product may exceed its bound by rounding


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
    return CsrPattern(shape, _pointer(row, shape[0], kind), col.to(kind), _pointer(col[order], shape[1], kind), row[order].to(kind), order)


def _pointer(ascending: Tensor, n: int, kind: torch.dtype) -> Tensor:
    """``(n + 1,)`` where each value of ``ascending`` begins; two int32 arrays of n at the peak."""
    wanted = torch.arange(n + 1, dtype=kind, device=ascending.device)
    return torch.searchsorted(ascending.to(kind), wanted, out_int32=kind == torch.int32)


def rows_of(crow: Tensor, nnz: int) -> Tensor:
    """``(nnz,)`` int64 row of every entry, in memory O(nnz)."""
    entry = torch.arange(nnz, dtype=crow.dtype, device=crow.device)
    return torch.searchsorted(crow[1:], entry, right=True)


def csr_tensor(crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """torch's CSR tensor of these arrays, unchecked."""
    return torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=False)  # the layer checked its connections once


def multiply(x: Tensor, values: Tensor, pattern: CsrPattern) -> Tensor:
    """``(n_out, batch)``: W x for a feature-major ``(n_in, batch)`` x."""
    return csr_tensor(pattern.crow, pattern.col, values, pattern.shape) @ x


def gradients(
    grad: Tensor, x: Tensor, values: Tensor, pattern: CsrPattern, needs: tuple[bool, bool] = (True, True)
) -> tuple[Tensor | None, Tensor | None]:
    """``(n_in, batch)`` gradient by x and ``(nnz,)`` gradient by the values, those that are needed.

    Args:
        grad: ``(n_out, batch)``.
        x: ``(n_in, batch)``.
    """
    by_x = by_values = None
    if needs[0]:
        transposed = csr_tensor(pattern.t_crow, pattern.t_col, values[pattern.t_order], (pattern.shape[1], pattern.shape[0]))
        by_x = transposed @ grad
    if needs[1]:
        zeros = csr_tensor(pattern.crow, pattern.col, torch.zeros_like(values), pattern.shape)
        by_values = torch.sparse.sampled_addmm(zeros, grad, x.t(), beta=0.0).values()
    return by_x, by_values


class _CsrLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, pattern: CsrPattern) -> Tensor:
        ctx.save_for_backward(x, values)
        ctx.pattern = pattern
        return multiply(x.t(), values, pattern).t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, values = ctx.saved_tensors
        needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1])
        by_x, by_values = gradients(grad.t(), x.t(), values, ctx.pattern, needs)
        return None if by_x is None else by_x.t(), by_values, None


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

    Exact, by branch and bound: the units with the largest norms are searched first, and a unit or a tile is left out only when the
    Cauchy–Schwarz bound of its norms lies below the k-th best product found.

    Args:
        x: ``(batch, n_in)`` the layer's input.
        grad: ``(batch, n_out)`` the gradient of the loss by its output.
        present: ``(nnz,)`` int64 ascending flat positions that do not count.
        k: at most the number of absent sites.
    """
    n_in = x.shape[1]
    x_norm, g_norm = (torch.linalg.vector_norm(side, dim=0) for side in (x, grad))
    n_wanted, found = _FIRST_UNITS, False
    where = present.new_empty(0)
    while k and not found:
        rows, row_norm, row_rest = _largest(g_norm, n_wanted)
        cols, col_norm, col_rest = _largest(x_norm, n_wanted)
        best, where = _search((x, grad), (rows, row_norm), (cols, col_norm), present, k)
        missed = _SLACK * max(row_rest * float(x_norm.max()), col_rest * float(g_norm.max()))
        whole = row_rest < 0 and col_rest < 0
        found = whole or missed < 0 or (best.numel() == k and missed < float(best[-1]))
        n_wanted *= 16
    flat = torch.sort(where).values
    return torch.stack([flat // n_in, flat % n_in])


def _largest(norm: Tensor, n: int) -> tuple[Tensor, Tensor, float]:
    """About the ``n`` units of largest norm, in descending order, their norms, and the largest norm left out (-1 if none is)."""
    if n >= norm.numel():
        chosen, rest = torch.arange(norm.numel(), device=norm.device), -1.0
    else:
        sample = torch.sort(norm[:: max(1, norm.numel() // _SAMPLE)]).values
        limit = sample[-max(1, n * sample.numel() // norm.numel())]
        inside = norm >= limit
        chosen = torch.nonzero(inside).flatten()
        rest = float(torch.where(inside, -1.0, norm).max())
    order = torch.argsort(norm[chosen], descending=True, stable=True)
    return chosen[order], norm[chosen[order]], rest


def _search(
    operands: tuple[Tensor, Tensor],
    rows: tuple[Tensor, Tensor],
    cols: tuple[Tensor, Tensor],
    present: Tensor,
    k: int,
) -> tuple[Tensor, Tensor]:
    """The k largest absent products among the given units (index and norm, descending), tile by tile."""
    (x, grad), (row, row_norm), (col, col_norm) = operands, rows, cols
    best, where = x.new_empty(0), present.new_empty(0)
    for i in range(0, row.numel(), _TILE_ROWS):
        for j in range(0, col.numel(), _TILE_COLS):
            if best.numel() == k and float(row_norm[i] * col_norm[j]) * _SLACK < float(best[-1]):
                break  # every later tile of these rows has smaller norms
            units = row[i : i + _TILE_ROWS], col[j : j + _TILE_COLS]
            best, where = _merge(best, where, (x[:, units[1]], grad[:, units[0]]), units, present, (k, x.shape[1]))
        if best.numel() == k and float(row_norm[i] * col_norm[0]) * _SLACK < float(best[-1]):
            break
    return best, where


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
