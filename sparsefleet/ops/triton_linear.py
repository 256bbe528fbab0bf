"""The sparse layer on CUDA: chooses tiles by shape and launches the kernels of ``triton_kernels``.

Activations are feature-major, ``(features, batch)`` contiguous. Sums run in float32 (in float64 for float64 activations), whatever the types of
activations and values. Results are the same bits from run to run: no atomics, and no tuning by the clock at run time. Nothing here waits for the
device, so that calls can be captured in a CUDA graph once each kernel was compiled by a first call.

Triton comes with torch on Linux and is missing elsewhere: it is imported at the first launch only.
"""

from __future__ import annotations

import math
import os
import shutil
import sysconfig
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsefleet.ops.pattern import Pattern

SMALL_BATCH = 4
"""Up to here threads share out the connections of a row and not the batch."""
_RUN_BYTES, _LEAST_RUN_BYTES = 256, 64
"""Of activations that a connection fetches: eight sectors of the cache, at least two."""
_LOAD_BYTES = 16
_L2_BYTES = 50 * 2**20
_CAPABILITY = (8, 0)
_SMALL_TILE, _SMALL_UNROLL, _SMALL_WARPS = 1024, 128, 4


@dataclass(frozen=True)
class Tile:
    """What one program works on.

    Attributes:
        batch: activations of a run (BB), a power of two.
        rows: sparse rows (R).
        unroll: connections of each row that are fetched at once (U).
        warps: of 32 threads.
        vector: activations that one load can take: a divisor of the batch.
    """

    batch: int
    rows: int
    unroll: int
    warps: int
    vector: int = 1


def available(device: torch.device | str) -> str | None:
    """Why the kernels cannot run on ``device``, in a few words; None if they can."""
    return _available(str(device))


@cache
def _available(device: str) -> str | None:
    if torch.device(device).type != "cuda":
        return "Triton is for CUDA devices"
    if find_spec("triton") is None:
        return "Triton is not installed"
    if torch.version.hip is not None:
        return "the Triton kernels were never tried on ROCm"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability < _CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]}, Triton needs {_CAPABILITY[0]}.{_CAPABILITY[1]}"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "no C compiler (gcc or clang), with which Triton builds its launcher"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "no Python.h, which Triton's launcher is built with"
    return None


def triton_forward(x_fm: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None = None, *, tile: Tile | None = None) -> Tensor:
    """``(n_out, B)`` contiguous, in x's dtype: the weights times ``x_fm``, plus the bias.

    Args:
        x_fm: ``(n_in, B)`` contiguous.
        values: ``(nnz,)`` in the order of ``pattern``, of any floating dtype.
        pattern: with one panel.
        bias: ``(n_out,)``.
        tile: what a program works on; default: by the shapes.
    """
    y_fm = x_fm.new_empty(pattern.shape[0], x_fm.shape[1])
    _product(x_fm, values, _by_rows(pattern), (bias, y_fm), tile)
    return y_fm


def triton_backward(
    dy_fm: Tensor, x_fm: Tensor, values: Tensor, pattern: Pattern, need_x: bool, need_w: bool, *, tile: Tile | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients by the activations, ``(n_in, B)`` in x's dtype, and by the values, ``(nnz,)`` in theirs; None where not asked for.

    Args:
        dy_fm: ``(n_out, B)`` contiguous, of x's dtype: the gradient by the output.
        x_fm: ``(n_in, B)`` contiguous: what the forward pass got.
        tile: of the fused kernel, which gives both gradients; default: by the shapes.
    """
    dx_fm = torch.empty_like(x_fm) if need_x else None
    dw = values.new_empty(values.shape, dtype=_sums_in(x_fm)) if need_w else None  # several batch tiles add to it
    if dw is not None and x_fm.shape[1] == 0:
        dw.zero_()
    elif dx_fm is not None and dw is not None and x_fm.shape[1] > SMALL_BATCH:
        _fused((dy_fm, x_fm), values, pattern, (dx_fm, dw), tile)
    else:
        if dx_fm is not None:
            _product(dy_fm, values, _by_columns(pattern), (None, dx_fm))
        if dw is not None:
            _sampled(dy_fm, x_fm, pattern, dw)
    return dx_fm, None if dw is None else dw.to(values.dtype)


def triton_gather(table: Tensor, order: Tensor, bag: int) -> Tensor:
    """``(n / bag, width)``: sums of ``bag`` rows each of ``table`` fetched by index, for measuring how fast a device fetches rows.

    Args:
        table: ``(rows, width)`` float32 contiguous, of a width that is a power of two.
        order: ``(n,)`` int32, n a multiple of ``bag``.
        bag: a multiple of 8.
    """
    width, n_bags = table.shape[1], order.numel() // bag
    lanes = max(1, width // 4)
    tile = Tile(width, max(1, 128 // lanes), 8, 4)
    out = table.new_empty(n_bags, width)
    _launch("gathered", _cdiv(n_bags, tile.rows), table, tile, {"table": table, "index": order, "out": out, "n_bags": n_bags, "BAG": bag})
    return out


@dataclass(frozen=True)
class _Rows:
    """One side of the index: what a row's connections are, and where their values lie."""

    n: int
    fan_in: int | None
    pointer: Tensor
    index: Tensor
    place: Tensor | None

    @property
    def length(self) -> int:
        """Connections of a row on average, rounded up."""
        return -(-self.index.numel() // max(1, self.n))

    def arguments(self) -> dict[str, Any]:
        """What the kernels call them; a pointer that is not read is any pointer."""
        is_constant = self.fan_in is not None
        pointer = self.index if is_constant else self.pointer
        return {"pointer": pointer, "index": self.index, "n_rows": self.n, "fan_in": self.fan_in or 0, "CONSTANT": is_constant}


def _by_rows(pattern: Pattern) -> _Rows:
    return _Rows(pattern.shape[0], pattern.fan_in, pattern.crow, pattern.col, None)


def _by_columns(pattern: Pattern) -> _Rows:
    return _Rows(pattern.shape[1], None, pattern.t_ptr, pattern.t_row, pattern.t_pos)


def _product(x: Tensor, values: Tensor, rows: _Rows, out: tuple[Tensor | None, Tensor], tile: Tile | None = None) -> None:
    batch, (bias, y) = x.shape[1], out
    flags = {"PLACED": rows.place is not None, "BIASED": bias is not None, "ACC": _accumulator(x)}
    place, bias = rows.index if rows.place is None else rows.place, values if bias is None else bias
    arguments = {"x": x, "values": values, "place": place, "bias": bias, "y": y, **rows.arguments(), **flags}
    if batch <= SMALL_BATCH:
        tile = small_tile(batch, rows.length)
        _launch("small_product", _cdiv(rows.n, tile.rows), x, tile, arguments | {"BATCH": batch})
        return
    tile = tile or tile_for(x, rows.length, warps=4 if rows.fan_in is not None else 1)
    n_programs = _cdiv(rows.n, tile.rows) * _cdiv(batch, tile.batch)
    _launch("product", n_programs, x, tile, arguments | {"batch": batch, "VECTOR": tile.vector})


def _fused(given: tuple[Tensor, Tensor], values: Tensor, pattern: Pattern, out: tuple[Tensor, Tensor], tile: Tile | None) -> None:
    (dy, x), rows = given, _by_columns(pattern)
    batch = x.shape[1]
    tile = tile or tile_for(dy, rows.length, warps=1)
    index = {"pointer": rows.pointer, "index": rows.index, "place": rows.place, "n_cols": rows.n, "batch": batch}
    arguments = {"x": x, "dy": dy, "values": values, "dx": out[0], "dw": out[1], **index, "ACC": _accumulator(x), "VECTOR": tile.vector}
    for i in range(_cdiv(batch, tile.batch)):  # one launch after the other, since each adds to the weights' gradient of the one before
        _launch("fused_backward", _cdiv(rows.n, tile.rows), x, tile, arguments | {"tile": i, "ADD": i > 0})


def _sampled(dy: Tensor, x: Tensor, pattern: Pattern, dw: Tensor) -> None:
    rows, batch = _by_rows(pattern), x.shape[1]
    arguments = {"x": x, "dy": dy, "dw": dw, **rows.arguments(), "ACC": _accumulator(x)}
    if batch <= SMALL_BATCH:
        tile = small_tile(batch, rows.length)
        _launch("small_sampled", _cdiv(rows.n, tile.rows), x, tile, arguments | {"BATCH": batch})
        return
    tile = tile_for(x, rows.length, warps=4 if rows.fan_in is not None else 1)
    for i in range(_cdiv(batch, tile.batch)):
        _launch("sampled", _cdiv(rows.n, tile.rows), x, tile, arguments | {"batch": batch, "tile": i, "ADD": i > 0, "VECTOR": tile.vector})


def tile_for(table: Tensor, length: int, *, warps: int) -> Tile:
    """The tile for runs fetched out of ``table``, ``(features, B)``, by rows of about ``length`` connections.

    A run is 256 bytes; shorter if only then the table's batch tile fits into half of L2. A warp takes as many rows as 16-byte loads leave
    threads for, and so many connections at once that no thread waits for one load at a time and that indices need not pass through shared memory
    (fewer of them than threads). Rows of equal length go to four warps; where lengths differ, a warp waits for nobody else's.
    """
    n, batch = table.shape
    size = table.element_size()
    run = min(_RUN_BYTES // size, _power_of_two(batch))
    room = _l2_bytes(table.device) // 2
    fitting = [r for r in (run >> i for i in range(3)) if r * size >= _LEAST_RUN_BYTES and n * r * size <= room]
    run = fitting[0] if fitting else run
    vector = math.gcd(batch, min(run, _LOAD_BYTES // size))
    lanes = run // vector
    unroll = max(2, min(8, lanes // 2, _power_of_two(length)))
    return Tile(run, max(1, warps * 32 // lanes), unroll, warps, vector)


def small_tile(batch: int, length: int) -> Tile:
    """The tile for up to ``SMALL_BATCH`` batch elements and rows of about ``length`` connections."""
    width = _power_of_two(batch)
    unroll = min(_SMALL_UNROLL, _power_of_two(length))
    return Tile(width, max(1, _SMALL_TILE // (unroll * width)), unroll, _SMALL_WARPS)


def _launch(name: str, n_programs: int, like: Tensor, tile: Tile, arguments: dict[str, Any]) -> None:
    if n_programs == 0 or like.shape[1] == 0:
        return
    with _on(like.device):
        _kernel(name)[(n_programs,)](**arguments, U=tile.unroll, R=tile.rows, BB=tile.batch, num_warps=tile.warps, enable_fp_fusion=True)


def _kernel(name: str) -> Any:
    from sparsefleet.ops import triton_kernels

    return getattr(triton_kernels, name)


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _accumulator(x: Tensor) -> Any:
    import triton.language as tl

    return tl.float64 if x.dtype == torch.float64 else tl.float32


def _sums_in(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@cache
def _l2_bytes(device: torch.device) -> int:
    properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return int(getattr(properties, "L2_cache_size", 0)) or _L2_BYTES


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _cdiv(n: int, size: int) -> int:
    return -(-n // size)
