"""The C kernels: found, loaded and called.

The library is loaded after torch, so that its OpenMP is torch's own: one pool of threads, ``torch.set_num_threads`` holds for both.
"""

from __future__ import annotations

import ctypes
import functools
import math
import time
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsefleet import kernels

if TYPE_CHECKING:
    from sparsefleet.ops.pattern import Pattern

TILE = 64
"""Columns of the batch that are computed together."""
FEW = 4
"""Batches up to this size have kernels of their own."""
_CHAINS = 4
_WHOLE_TILES = (16, 32, 64)
_WORTH_PLACING = 10**7
_TRIES = 7


class _Matrix(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n_out", "n_in", "fan_in", "panels")),
        *((name, ctypes.c_void_p) for name in ("crow", "col", "t_ptr", "t_row", "t_pos")),
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """The loaded kernels, or None where they were not built, cannot be loaded, or ``SPARSEFLEET_KERNELS=off``."""
    return None if why_not() else _load()


@functools.cache
def why_not() -> str:
    """Why the kernels are not used; empty where they are."""
    reason = kernels.why_not()
    if reason:
        if not kernels.is_off():
            warnings.warn(f"{reason}; sparse layers compute in plain torch until then", stacklevel=2)
        return reason
    try:
        _load()
    except (OSError, AttributeError) as error:
        reason = f"the CPU kernels do not load: {error}"
        warnings.warn(f"{reason}; sparse layers compute in plain torch until then", stacklevel=2)
    return reason


@functools.cache
def _load() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(kernels.LIBRARY))
    for name, arguments in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype = None
        function.argtypes = [_TYPES[kind] for kind in arguments]
    return loaded


_TYPES = {"m": ctypes.POINTER(_Matrix), "l": ctypes.c_int64, "p": ctypes.c_void_p, "i": ctypes.c_int, "f": ctypes.c_float}
_SIGNATURES = {
    "sf_forward": "mlpppppi",
    "sf_backward": "mlppppppi",
    "sf_forward_few": "mlppppi",
    "sf_backward_few": "mlppppppi",
    "sf_forward_f64": "mlppppi",
    "sf_backward_f64": "mlpppppi",
    "sf_transpose_index": "mlpppi",
    "sf_transpose": "pplli",
    "sf_take": "pplpi",
    "sf_find": "plplpi",
    "sf_sites": "mpi",
    "sf_split": "plllppi",
    "sf_merge": "pplplpppi",
    "sf_place": "ii",
    "sf_gather": "ppllpi",
    "sf_multiply_add": "lpi",
    "sf_norm_forward": "llpppppppfii",
    "sf_norm_backward": "ll" + "p" * 11 + "ii",
}
"""m: matrix, l: int64, p: pointer, i: int, f: float."""


def _call(name: str, *arguments: object) -> None:
    """Tensors go as they are, not as addresses: here they stay alive until the kernel returns."""
    plain = (_at(argument) if isinstance(argument, Tensor) else argument for argument in arguments)
    getattr(library(), name)(*plain, torch.get_num_threads())


def _at(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return None
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise RuntimeError(f"a CPU kernel was given a {tensor.device.type} tensor with strides {tensor.stride()}")
    return tensor.data_ptr()


def _matrix(pattern: Pattern) -> _Matrix:
    crow = None if pattern.fan_in is not None else pattern.crow
    arrays = (crow, pattern.col, pattern.t_ptr, pattern.t_row, pattern.t_pos)
    return _Matrix(*pattern.shape, pattern.fan_in or 0, pattern.panels, *map(_at, arrays))


@functools.cache
def _place() -> None:
    """Takes the faster of two copies of the loops that fetch by index; see docs/decisions/0012. About 50 ms, once a process."""
    from sparsefleet.ops.pattern import pattern_from

    n, fan_in, draws = 20_000, 10, torch.Generator("cpu").manual_seed(0)
    index: dict[str, Any] = {"dtype": torch.int32, "device": "cpu"}
    pattern = pattern_from(torch.empty(0, **index), torch.randint(n, (n * fan_in,), generator=draws, **index), (n, n), fan_in=fan_in)
    x, values = (torch.ones(shape, dtype=torch.float32, device="cpu") for shape in ((n, TILE), (pattern.nnz,)))
    matrix, y, by_x, by_values = _matrix(pattern), torch.empty_like(x), torch.empty_like(x), torch.empty_like(values)
    best = {(kernel, copy): math.inf for kernel in (0, 1) for copy in (0, 1)}
    for _ in range(_TRIES):
        for copy in (0, 1):
            _load().sf_place(copy, copy)
            begun = time.perf_counter()
            _call("sf_forward", matrix, TILE, values, None, x, y, None)
            between = time.perf_counter()
            _call("sf_backward", matrix, TILE, values, x, y, by_x, by_values, None)
            best[0, copy] = min(best[0, copy], between - begun)
            best[1, copy] = min(best[1, copy], time.perf_counter() - between)
    _load().sf_place(*(int(best[kernel, 1] < best[kernel, 0]) for kernel in (0, 1)))


def transpose_index(pattern: Pattern) -> None:
    """Fills ``t_ptr``, ``t_row`` and ``t_pos`` by a counting sort, a panel a thread."""
    from sparsefleet.ops.pattern import panel_rows

    _call("sf_transpose_index", _matrix(pattern), panel_rows(pattern), pattern.t_ptr, pattern.t_row, pattern.t_pos)


def merge(flat: Tensor, keep: Tensor, fresh: Tensor) -> tuple[Tensor, Tensor, int]:
    """``merge_sites`` of contiguous arrays, fewer than 2^31 together."""
    out = flat.new_empty(int(torch.count_nonzero(keep)) + fresh.numel())
    source = torch.empty_like(out, dtype=torch.int32)
    counts = flat.new_zeros(torch.get_num_threads() * _CHAINS)
    _call("sf_merge", flat, keep, flat.numel(), fresh, fresh.numel(), out, source, counts)
    return out, source, int(counts.sum())


def find(flat: Tensor, sites: Tensor) -> Tensor:
    """``positions`` of contiguous arrays."""
    at = torch.empty_like(sites)
    _call("sf_find", flat, flat.numel(), sites, sites.numel(), at)
    return at


def take(values: Tensor, source: Tensor) -> Tensor:
    """``taken`` of contiguous values of 4 bytes, by int32 positions."""
    out = values.new_empty(source.shape)
    _call("sf_take", values, source, source.numel(), out)
    return out


def sites(pattern: Pattern) -> Tensor:
    """``(nnz,)`` int64 ascending sites."""
    out = torch.empty_like(pattern.col, dtype=torch.int64).view(-1)
    _call("sf_sites", _matrix(pattern), out)
    return out


def split(flat: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """``split_sites`` of a contiguous array."""
    crow, col = (flat.new_empty(n, dtype=torch.int32) for n in (shape[0] + 1, flat.numel()))
    _call("sf_split", flat, flat.numel(), *shape, crow, col)
    return crow, col


def transposed(x: Tensor) -> Tensor:
    """``(cols, rows)`` contiguous copy of a contiguous float32 ``(rows, cols)``."""
    out = x.new_empty(x.shape[1], x.shape[0])
    _call("sf_transpose", x, out, *x.shape)
    return out


def only_once(ctx: Any, *grads: Tensor) -> Any:
    """The gradient of a gradient: an error in place of torch's silent zero."""
    raise RuntimeError("the sparse kernels have a first derivative only; masked has all")


def forward(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern) -> Tensor:
    """``(n_out, batch)`` W x + bias.

    Args:
        x: ``(n_in, batch)`` contiguous, float32 or float64, as ``values`` and ``bias``.
    """
    batch = x.shape[1]
    if pattern.nnz * batch > _WORTH_PLACING:
        _place()
    y = x.new_empty(pattern.shape[0], batch)
    common = (_matrix(pattern), batch, values, bias, x, y)
    if x.dtype == torch.float64:
        _call("sf_forward_f64", *common)
    elif batch <= FEW:
        _call("sf_forward_few", *common)
    else:
        scratch = None if batch in _WHOLE_TILES else x.new_empty(pattern.shape[1] * TILE)
        _call("sf_forward", *common, scratch)
    return y


def backward(grad: Tensor, x: Tensor, values: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """``(n_in, batch)`` gradient by x and ``(nnz,)`` gradient by the values.

    Args:
        grad: ``(n_out, batch)`` contiguous.
        x: ``(n_in, batch)`` contiguous.
    """
    batch = x.shape[1]
    if pattern.nnz * batch > _WORTH_PLACING:
        _place()
    by_x, by_values = torch.empty_like(x), torch.empty_like(values)
    common = (_matrix(pattern), batch, values, x, grad, by_x, by_values)
    if x.dtype == torch.float64:
        _call("sf_backward_f64", *common)
    elif batch <= FEW:
        _call("sf_backward_few", *common, x.new_empty((torch.get_num_threads() - 1) * x.numel()))
    else:
        in_order = 2 * pattern.nnz if batch > TILE else 0
        scratch = None if batch in _WHOLE_TILES else x.new_empty(pattern.shape[0] * TILE + in_order)
        _call("sf_backward", *common, scratch)
    return by_x, by_values


def norm_forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool) -> tuple[Tensor, Tensor, Tensor]:
    """``(features, batch)`` normalised over the features, and the mean and the reciprocal deviation ``(batch,)``.

    Args:
        x: ``(features, batch)`` contiguous float32.
        weight: ``(features,)``.
        bias: ``(features,)``.
        relu: whether negative results become zero.
    """
    batch = x.shape[1]
    y, mean, rstd = torch.empty_like(x), x.new_empty(batch), x.new_empty(batch)
    partial = x.new_empty(torch.get_num_threads() * batch, dtype=torch.float64)
    _call("sf_norm_forward", *x.shape, x, weight, bias, y, mean, rstd, partial, eps, relu)
    return y, mean, rstd


def norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by x, by the weight and by the bias; shapes as in ``norm_forward``."""
    batch = x.shape[1]
    by_x, by_weight, by_bias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
    partial = x.new_empty(torch.get_num_threads() * 2 * batch, dtype=torch.float64)
    tensors = (x, weight, bias, mean, rstd, grad, by_x, by_weight, by_bias, partial, x.new_empty(2 * batch))
    _call("sf_norm_backward", *x.shape, *tensors, relu)
    return by_x, by_weight, by_bias


def gather(table: Tensor, index: Tensor) -> Tensor:
    """``(threads, 64)`` partial sums of the rows of ``table`` at ``index``; for measuring what a gather can reach.

    Args:
        table: ``(n, width)`` contiguous float32, the width 16 or a multiple of 64.
        index: ``(n_fetched,)`` int32.
    """
    out = table.new_empty(torch.get_num_threads(), TILE)
    _call("sf_gather", table, index, index.numel(), table.shape[1], out)
    return out


def multiply_add(rounds: int) -> int:
    """Floating-point operations done, on all threads together: 16 independent multiply-adds of 16 float32 each, ``rounds`` times."""
    threads = torch.get_num_threads()
    _call("sf_multiply_add", rounds, torch.zeros(threads, TILE, dtype=torch.float32, device="cpu"))
    return 2 * 16 * 16 * rounds * threads
