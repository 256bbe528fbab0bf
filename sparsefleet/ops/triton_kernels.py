"""The Triton kernels of the sparse layer. Imported only where Triton is there; ``triton_linear`` launches them.

Activations are feature-major: ``(features, batch)``, batch innermost. A program takes R sparse rows and BB batch elements. Each round it loads
the positions of U connections of each row, then U·R runs of BB activations, none of which waits for another, and multiplies them. The tile has
the shape (U, R, BB): a run is loaded by neighbouring threads, a row stays within a warp, and the sum over U needs no other thread.

Batch tiles are the slow part of the program number, so that all rows of a tile run before the next one and its activations stay in L2. Rows
have either ``fan_in`` connections each or a pointer. Offsets are 64-bit: nnz, features × batch and outputs × batch may exceed 2^31. Nothing
uses tensor cores or float atomics: every sum has one order.

``(batch // VECTOR) * VECTOR`` is ``batch``; written so, the compiler knows that rows are aligned and loads up to 16 bytes at a time.
"""

# ruff: noqa: N803 - what the compiler has to know is in capitals
# mypy: ignore-errors
import triton
import triton.language as tl


@triton.jit
def _span(pointer, row, inside, fan_in, CONSTANT: tl.constexpr):
    """First and end position of each row's connections, int64, and the largest number of them."""
    if CONSTANT:
        first = row.to(tl.int64) * fan_in
        end = tl.where(inside, first + fan_in, first)
        longest = fan_in
    else:
        first = tl.load(pointer + row, mask=inside, other=0).to(tl.int64)
        end = tl.load(pointer + row + 1, mask=inside, other=0).to(tl.int64)
        longest = tl.max(end - first, axis=0)
    return first, end, longest


@triton.jit
def product(
    x, values, pointer, index, place, bias, y, n_rows, fan_in, batch,
    CONSTANT: tl.constexpr, PLACED: tl.constexpr, BIASED: tl.constexpr, ACC: tl.constexpr,
    U: tl.constexpr, R: tl.constexpr, BB: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """``y[i] = Σ values[p] · x[index[p]]`` over the connections p of row i, plus ``bias[i]``; ``place[p]`` says where p's value is if PLACED."""
    n_blocks = tl.cdiv(n_rows, R)
    stride = (batch // VECTOR) * VECTOR
    row = (tl.program_id(0) % n_blocks) * R + tl.arange(0, R)
    b = (tl.program_id(0) // n_blocks) * BB + tl.arange(0, BB)
    inside, in_batch = row < n_rows, b < stride
    first, end, longest = _span(pointer, row, inside, fan_in, CONSTANT)
    acc = tl.zeros((U, R, BB), ACC)
    for k in range(0, longest, U):
        p = first[None, :] + (k + tl.arange(0, U))[:, None]  # (U, R)
        there = p < end[None, :]
        j = tl.load(index + p, mask=there, other=0).to(tl.int64)
        at = tl.load(place + p, mask=there, other=0) if PLACED else p
        w = tl.load(values + at, mask=there, other=0).to(ACC)
        run = (j * stride)[:, :, None] + b[None, None, :]
        xs = tl.load(x + run, mask=there[:, :, None] & in_batch[None, None, :], other=0).to(ACC)
        acc += w[:, :, None] * xs
    total = tl.sum(acc, axis=0)  # (R, BB)
    if BIASED:
        total += tl.load(bias + row, mask=inside, other=0).to(ACC)[:, None]
    out = (row.to(tl.int64) * stride)[:, None] + b[None, :]
    tl.store(y + out, total.to(y.dtype.element_ty), mask=inside[:, None] & in_batch[None, :])


@triton.jit(do_not_specialize=["tile"])
def fused_backward(
    x, dy, values, pointer, index, place, dx, dw, n_cols, batch, tile,
    ADD: tl.constexpr, ACC: tl.constexpr, U: tl.constexpr, R: tl.constexpr, BB: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Both gradients of batch tile ``tile`` with one gather: a program keeps ``x[j]`` and ``dx[j]`` of R input units and fetches ``dy[i]`` once.

    The launch of the first tile writes ``dw``; those of later ones ADD to it.
    """
    stride = (batch // VECTOR) * VECTOR
    col = tl.program_id(0) * R + tl.arange(0, R)
    b = tile * BB + tl.arange(0, BB)
    inside, in_batch = col < n_cols, b < stride
    first, end, longest = _span(pointer, col, inside, 0, False)
    own = (col.to(tl.int64) * stride)[:, None] + b[None, :]
    held = inside[:, None] & in_batch[None, :]
    xs = tl.load(x + own, mask=held, other=0).to(ACC)  # (R, BB)
    acc = tl.zeros((U, R, BB), ACC)
    for k in range(0, longest, U):
        p = first[None, :] + (k + tl.arange(0, U))[:, None]  # (U, R)
        there = p < end[None, :]
        i = tl.load(index + p, mask=there, other=0).to(tl.int64)
        at = tl.load(place + p, mask=there, other=0)
        w = tl.load(values + at, mask=there, other=0).to(ACC)
        run = (i * stride)[:, :, None] + b[None, None, :]
        dys = tl.load(dy + run, mask=there[:, :, None] & in_batch[None, None, :], other=0).to(ACC)
        acc += w[:, :, None] * dys
        part = tl.sum(xs[None, :, :] * dys, axis=2)  # (U, R)
        if ADD:
            part += tl.load(dw + at, mask=there, other=0).to(ACC)
        tl.store(dw + at, part.to(dw.dtype.element_ty), mask=there)
    tl.store(dx + own, tl.sum(acc, axis=0).to(dx.dtype.element_ty), mask=held)


@triton.jit(do_not_specialize=["tile"])
def sampled(
    x, dy, pointer, index, dw, n_rows, fan_in, batch, tile,
    CONSTANT: tl.constexpr, ADD: tl.constexpr, ACC: tl.constexpr,
    U: tl.constexpr, R: tl.constexpr, BB: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """``dw[p] = dy[i] · x[index[p]]`` over batch tile ``tile``: the gradient of the values alone, written in order; ADD as above."""
    stride = (batch // VECTOR) * VECTOR
    row = tl.program_id(0) * R + tl.arange(0, R)
    b = tile * BB + tl.arange(0, BB)
    inside, in_batch = row < n_rows, b < stride
    first, end, longest = _span(pointer, row, inside, fan_in, CONSTANT)
    own = (row.to(tl.int64) * stride)[:, None] + b[None, :]
    dys = tl.load(dy + own, mask=inside[:, None] & in_batch[None, :], other=0).to(ACC)  # (R, BB)
    for k in range(0, longest, U):
        p = first[None, :] + (k + tl.arange(0, U))[:, None]  # (U, R)
        there = p < end[None, :]
        j = tl.load(index + p, mask=there, other=0).to(tl.int64)
        run = (j * stride)[:, :, None] + b[None, None, :]
        xs = tl.load(x + run, mask=there[:, :, None] & in_batch[None, None, :], other=0).to(ACC)
        part = tl.sum(dys[None, :, :] * xs, axis=2)  # (U, R)
        if ADD:
            part += tl.load(dw + p, mask=there, other=0).to(ACC)
        tl.store(dw + p, part.to(dw.dtype.element_ty), mask=there)


@triton.jit
def small_product(
    x, values, pointer, index, place, bias, y, n_rows, fan_in,
    BATCH: tl.constexpr, CONSTANT: tl.constexpr, PLACED: tl.constexpr, BIASED: tl.constexpr, ACC: tl.constexpr,
    U: tl.constexpr, R: tl.constexpr, BB: tl.constexpr,
):  # fmt: skip
    """``product`` for a few batch elements: the tile is (R, U, BB), neighbouring threads take neighbouring connections of a row."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    b = tl.arange(0, BB)
    inside, in_batch = row < n_rows, b < BATCH
    first, end, longest = _span(pointer, row, inside, fan_in, CONSTANT)
    acc = tl.zeros((R, U, BB), ACC)
    for k in range(0, longest, U):
        p = first[:, None] + (k + tl.arange(0, U))[None, :]  # (R, U)
        there = p < end[:, None]
        j = tl.load(index + p, mask=there, other=0).to(tl.int64)
        at = tl.load(place + p, mask=there, other=0) if PLACED else p
        w = tl.load(values + at, mask=there, other=0).to(ACC)
        run = (j * BATCH)[:, :, None] + b[None, None, :]
        xs = tl.load(x + run, mask=there[:, :, None] & in_batch[None, None, :], other=0).to(ACC)
        acc += w[:, :, None] * xs
    total = tl.sum(acc, axis=1)  # (R, BB)
    if BIASED:
        total += tl.load(bias + row, mask=inside, other=0).to(ACC)[:, None]
    out = (row.to(tl.int64) * BATCH)[:, None] + b[None, :]
    tl.store(y + out, total.to(y.dtype.element_ty), mask=inside[:, None] & in_batch[None, :])


@triton.jit
def small_sampled(
    x, dy, pointer, index, dw, n_rows, fan_in,
    BATCH: tl.constexpr, CONSTANT: tl.constexpr, ACC: tl.constexpr, U: tl.constexpr, R: tl.constexpr, BB: tl.constexpr,
):  # fmt: skip
    """``sampled`` for a few batch elements, all at once."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    b = tl.arange(0, BB)
    inside, in_batch = row < n_rows, b < BATCH
    first, end, longest = _span(pointer, row, inside, fan_in, CONSTANT)
    own = (row.to(tl.int64) * BATCH)[:, None] + b[None, :]
    dys = tl.load(dy + own, mask=inside[:, None] & in_batch[None, :], other=0).to(ACC)  # (R, BB)
    for k in range(0, longest, U):
        p = first[:, None] + (k + tl.arange(0, U))[None, :]  # (R, U)
        there = p < end[:, None]
        j = tl.load(index + p, mask=there, other=0).to(tl.int64)
        run = (j * BATCH)[:, :, None] + b[None, None, :]
        xs = tl.load(x + run, mask=there[:, :, None] & in_batch[None, None, :], other=0).to(ACC)
        part = tl.sum(dys[:, None, :] * xs, axis=2)  # (R, U)
        tl.store(dw + p, part.to(dw.dtype.element_ty), mask=there)


@triton.jit
def gathered(
    table, index, out, n_bags,
    BAG: tl.constexpr, U: tl.constexpr, R: tl.constexpr, BB: tl.constexpr,
):  # fmt: skip
    """Sums of BAG rows of ``table``, each BB wide: a product's fetches and nothing else."""
    bag, b = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, BB)
    inside = bag < n_bags
    acc = tl.zeros((U, R, BB), tl.float32)
    for k in range(0, BAG, U):
        p = (bag.to(tl.int64) * BAG)[None, :] + (k + tl.arange(0, U))[:, None]  # (U, R)
        i = tl.load(index + p, mask=inside[None, :], other=0).to(tl.int64)
        acc += tl.load(table + (i * BB)[:, :, None] + b[None, None, :])
    tl.store(out + (bag.to(tl.int64) * BB)[:, None] + b[None, :], tl.sum(acc, axis=0), mask=inside[:, None])
