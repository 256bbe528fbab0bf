"""Absent sites with the largest gradient of the loss, from a layer's inputs and the gradients of its outputs; never out × in.

The gradient of the weight is ``gradᵀ x``. It is formed tile by tile; a tile is left out when the Cauchy–Schwarz bound of its norms lies below
what was found.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsefleet.errors import PluginError
from sparsefleet.ops.csr import top_absent_products
from sparsefleet.sparsity.select import keep_best

_TILE_ROWS, _TILE_COLS = 256, 1 << 15
_MANY, _SAMPLED_UNITS = 1 << 15, 64
_SLACK = 1.0 + 1e-5  # a product may exceed its bound by rounding


def best_absent(x: Tensor, grad: Tensor, present: Tensor, k: int) -> Tensor:
    """``(2, k)`` absent sites of the whole layer, ties by position, ascending.

    Few are found by ``top_absent_products``, which visits what may hold them alone. For many, a sample of units says from which product on a
    site is a candidate, and row blocks give theirs; too few candidates lower that floor, too many raise it.

    Args:
        x: ``(batch, n_in)`` the layer's input.
        grad: ``(batch, n_out)`` the gradient of the loss by its output.
        present: ``(nnz,)`` int64 ascending flat positions that do not count.
        k: at most the number of absent sites.
    """
    if k < _MANY:
        return top_absent_products(x, grad, present, k)
    n_in, n_out = x.shape[1], grad.shape[1]
    sample = (grad[:, :: max(1, n_out // _SAMPLED_UNITS)].t() @ x).abs_().view(-1)
    share = 1.1 * (k + present.numel()) / (n_in * n_out)
    value, flat = x.new_empty(0), present.new_empty(0)
    while value.numel() < k:
        rank = sample.numel() - int(share * sample.numel())
        floor = float(torch.kthvalue(sample, rank).values) if rank > 0 else 0.0
        value, flat = _candidates(x, grad, present, floor, k)
        if floor == 0.0 and value.numel() < k:
            raise PluginError(f"only {value.numel()} of {k} absent sites have a gradient that is a number: the loss has diverged")
        share = min(1.0, 2 * share)
    chosen = flat[keep_best(value, k)]
    row = torch.div(chosen, n_in, rounding_mode="floor")
    return torch.stack([row, chosen - row * n_in])


def _candidates(x: Tensor, grad: Tensor, present: Tensor, floor: float, k: int) -> tuple[Tensor, Tensor]:
    """Products of absent sites from ``floor`` on and their flat sites, ascending by site; at least the k best where there are k."""
    n_in, n_out = x.shape[1], grad.shape[1]
    values, sites, total = [x.new_empty(0)], [present.new_empty(0)], 0
    for i in range(0, n_out, _TILE_ROWS):
        score = (grad[:, i : i + _TILE_ROWS].t() @ x).abs_().view(-1)
        begin, end = torch.searchsorted(present, torch.tensor([i * n_in, i * n_in + score.numel()], device=present.device)).tolist()
        score[present[begin:end] - i * n_in] = -1.0
        at = torch.nonzero(score >= floor).flatten()
        values.append(score[at])
        sites.append(at.add_(i * n_in))
        total += at.numel()
        if total > 4 * k:
            value, flat = torch.cat(values), torch.cat(sites)
            best = keep_best(value, k)
            values, sites, total = [value[best]], [flat[best]], k
            floor = float(values[0].min())
    return torch.cat(values), torch.cat(sites)


def best_absent_per_row(x: Tensor, grad: Tensor, present: Tensor, counts: Tensor) -> Tensor:
    """``(2, sum(counts))`` absent sites: of every output unit as many as asked, ties by position, ascending.

    Row blocks with a running top-k each: the columns of largest norm come first, and a block ends when no column left can enter.

    Args:
        x: ``(batch, n_in)`` the layer's input.
        grad: ``(batch, n_out)`` the gradient of the loss by its output.
        present: ``(nnz,)`` int64 ascending flat positions that do not count.
        counts: ``(n_out,)`` int64, each at most the unit's absent sites.
    """
    n_in = x.shape[1]
    x_norm = torch.linalg.vector_norm(x, dim=0)
    order = torch.argsort(x_norm, descending=True, stable=True)
    wanted = torch.nonzero(counts).flatten()
    found = [present.new_empty(0)]
    step = _TILE_ROWS if n_in <= _TILE_COLS else max(1, _TILE_ROWS // 8)  # 4 MiB of products at a time in very wide layers
    for i in range(0, wanted.numel(), step):
        rows = wanted[i : i + step]
        found.append(_of_rows((x, grad[:, rows]), (order, x_norm), present, rows, counts[rows]))
    flat = torch.sort(torch.cat(found)).values
    return torch.stack([flat // n_in, flat % n_in])


def best_absent_tiles(x: Tensor, grad: Tensor, present: Tensor, n: int, tile: int) -> Tensor:
    """``(n,)`` int64 absent tiles with the largest sum of gradient magnitudes, ties by position, ascending; a running top-n by rows of tiles.

    Args:
        x: ``(batch, n_in)`` the layer's input.
        grad: ``(batch, n_out)`` the gradient of the loss by its output.
        present: ``(tiles,)`` int64 ascending tiles that do not count.
        tile: units per side.
    """
    pad = torch.nn.functional.pad
    x, grad = pad(x, (0, -x.shape[1] % tile)), pad(grad, (0, -grad.shape[1] % tile))
    wide, step = x.shape[1] // tile, max(1, _TILE_ROWS // tile)
    best, where = x.new_empty((1, 0)), present.new_empty((1, 0))
    for i in range(0, grad.shape[1] // tile if n else 0, step):
        part = grad[:, i * tile : (i + step) * tile]
        score = (part.t() @ x).abs_().view(-1, tile, wide, tile).sum((1, 3)).view(1, -1)
        begin, end = torch.searchsorted(present, torch.tensor([i * wide, i * wide + score.numel()], device=present.device)).tolist()
        score[0, present[begin:end] - i * wide] = -1.0
        value, at = _top(score, min(n, score.numel()))
        best, where = _merge(torch.cat([best, value], 1), torch.cat([where, at + i * wide], 1), n)
    return torch.sort(where[0]).values


def _of_rows(operands: tuple[Tensor, Tensor], by_norm: tuple[Tensor, Tensor], present: Tensor, rows: Tensor, counts: Tensor) -> Tensor:
    """``(sum(counts),)`` flat sites of a block of rows."""
    (x, grad), (order, x_norm) = operands, by_norm
    n_in, k = x.shape[1], int(counts.max())
    g_norm = torch.linalg.vector_norm(grad, dim=0)
    last = (counts - 1)[:, None]
    best, where = x.new_empty((rows.numel(), 0)), rows.new_empty((rows.numel(), 0))
    for j in range(0, n_in, _TILE_COLS):
        cols = order[j : j + _TILE_COLS]
        if best.shape[1] == k and bool((g_norm * x_norm[cols[0]] * _SLACK < best.gather(1, last)[:, 0]).all()):
            break
        cols = torch.sort(cols).values
        score = (grad.t() @ x[:, cols]).abs_()
        _blot_out(score, present, rows, cols, n_in)
        value, at = _top(score, min(k, cols.numel()))
        best, where = _merge(torch.cat([best, value], 1), torch.cat([where, cols[at]], 1), k)
    chosen = torch.arange(best.shape[1], device=rows.device) < counts[:, None]
    return (rows[:, None] * n_in + where)[chosen]


def _blot_out(score: Tensor, present: Tensor, rows: Tensor, cols: Tensor, n_in: int) -> None:
    """Present sites count below every absent one."""
    first, end = torch.searchsorted(present, rows * n_in), torch.searchsorted(present, (rows + 1) * n_in)
    size = end - first
    i = torch.repeat_interleave(size)
    col = present[torch.arange(i.numel(), device=i.device) + (first - torch.cumsum(size, 0) + size)[i]] - rows[i] * n_in
    at = torch.searchsorted(cols, col).clamp_(max=cols.numel() - 1)
    hit = cols[at] == col
    score[i[hit], at[hit]] = -1.0


def _top(score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """``(rows, k)`` the k largest of each row and their columns; of equal ones the lowest columns."""
    value, at = torch.topk(score, min(k + 1, score.shape[1]))
    tied = value[:, k - 1] == value[:, -1] if value.shape[1] > k else torch.zeros(0, dtype=torch.bool, device=score.device)
    value, at = value[:, :k], at[:, :k]
    if bool(tied.any()):
        ordered = torch.sort(score[tied], dim=1, descending=True, stable=True)
        value[tied], at[tied] = ordered.values[:, :k], ordered.indices[:, :k]
    return value, at


def _merge(value: Tensor, col: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row, highest first, ties by column."""
    order = torch.argsort(col, dim=1)
    order = order.gather(1, torch.argsort(value.gather(1, order), dim=1, descending=True, stable=True))[:, :k]
    return value.gather(1, order), col.gather(1, order)
