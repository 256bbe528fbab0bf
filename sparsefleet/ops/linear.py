"""y = x Wᵀ + b for a sparse W, as ``torch.library`` operators: traced, compiled and differentiated like torch's own.

Activations are feature-major: logically ``(batch, features)``, in memory one row a feature. What comes out is so, and what goes in is
transposed only if it is not; a chain of sparse layers therefore transposes at its entry alone.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import Library, impl, register_autograd, register_fake

from sparsefleet.errors import UserError
from sparsefleet.ops import csr, native
from sparsefleet.ops.operands import nothing, refuse_misfits, refuse_tangents, wide
from sparsefleet.ops.pattern import Pattern

_LIBRARY = Library("sparsefleet", "DEF")
_INDEX = "Tensor crow, Tensor col, Tensor t_ptr, Tensor t_row, Tensor t_pos, int n_in, int fan_in, int panels"
_LIBRARY.define("feature_major(Tensor x) -> Tensor")
_LIBRARY.define("row_major(Tensor x) -> Tensor")
_LIBRARY.define(f"linear(Tensor x, Tensor values, Tensor? bias, {_INDEX}) -> Tensor")
_LIBRARY.define(f"linear_backward(Tensor grad, Tensor x, Tensor values, {_INDEX}, bool need_x, bool need_values) -> (Tensor, Tensor)")


class Engine(NamedTuple):
    """What computes on a device, and why.

    Attributes:
        name: ``native`` (the C kernels), ``triton``, or ``torch``.
        reason: why not a faster one; empty if there is none.
    """

    name: str
    reason: str


def engine(device: torch.device | str) -> Engine:
    """What multiplies on ``device``."""
    kind = torch.device(device).type
    if kind == "cpu":
        why_not = native.why_not()
        return Engine("torch", why_not) if why_not else Engine("native", "")
    if kind == "cuda":
        from sparsefleet.ops import triton_linear

        why = triton_linear.available(torch.device(device))
        return Engine("torch", why) if why else Engine("triton", "")
    return Engine("torch", f"no kernels for {kind}")


def feature_major(x: Tensor) -> Tensor:
    """``(features, batch)`` contiguous, from ``(batch, features)`` of any strides; a view where it is feature-major already."""
    turned = x.t()
    if turned.is_contiguous():
        return turned
    if x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous() and native.library() is not None:
        return native.transposed(x)
    return turned.contiguous()


def _turn(x: Tensor) -> Tensor:
    turned = feature_major(x)
    return (
        turned.clone(memory_format=torch.contiguous_format) if turned.data_ptr() == x.data_ptr() else turned
    ).t()  # an operator's output is never its input


def _turn_back(x: Tensor) -> Tensor:
    turned = feature_major(x.t())  # what is feature-major to x is row-major to its transpose
    return turned.clone(memory_format=torch.contiguous_format) if turned.data_ptr() == x.data_ptr() else turned


def row_major(x: Tensor) -> Tensor:
    """``x`` with contiguous rows, for what comes after a chain of sparse layers; ``(batch, features)``, differentiable."""
    if x.dim() != 2 or x.is_contiguous():
        return x.contiguous()
    found: Tensor = torch.ops.sparsefleet.row_major(x)
    return found


def _pattern(index: tuple[Any, ...], n_out: int) -> Pattern:
    crow, col, t_ptr, t_row, t_pos, n_in, fan_in, panels = index
    return Pattern((n_out, n_in), None if fan_in < 0 else fan_in, crow, col, panels, t_ptr, t_row, t_pos)


def _csr(pattern: Pattern) -> csr.CsrPattern:
    crow = pattern.crow
    if pattern.fan_in is not None:
        crow = torch.arange(0, pattern.nnz + 1, pattern.fan_in, dtype=torch.int32, device=pattern.col.device)
    return csr.CsrPattern(pattern.shape, crow, pattern.col, pattern.t_ptr, pattern.t_row, pattern.t_pos)


def _n_out(crow: Tensor, col: Tensor, fan_in: int) -> int:
    return crow.shape[0] - 1 if fan_in < 0 else col.numel() // fan_in


def _forward(x: Tensor, values: Tensor, bias: Tensor | None, *index: Any) -> Tensor:
    pattern = _pattern(index, _n_out(index[0], index[1], index[6]))
    name = engine(x.device).name
    turned = feature_major(x)
    if name == "native":
        return native.forward(turned, values, bias, pattern).t()
    if name == "triton":
        from sparsefleet.ops import triton_linear

        return triton_linear.triton_forward(turned, values, pattern, bias).t()
    y = csr.multiply(turned, values, _csr(pattern))
    return (y if bias is None else y.add_(bias[:, None])).t()


def _backward(grad: Tensor, x: Tensor, values: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *index, need_x, need_values = rest
    pattern = _pattern(tuple(index), grad.shape[1])
    name = engine(x.device).name
    turned, turned_grad = feature_major(x), feature_major(grad)
    by_x: Tensor | None
    by_values: Tensor | None
    if name == "native":
        by_x, by_values = native.backward(turned_grad, turned, values, pattern)
    elif name == "triton":
        from sparsefleet.ops import triton_linear

        by_x, by_values = triton_linear.triton_backward(turned_grad, turned, values, pattern, need_x, need_values)
    else:
        by_x, by_values = csr.gradients(turned_grad, turned, values, _csr(pattern), (need_x, need_values))
    none = values.new_empty(0)
    return by_x.t() if by_x is not None and need_x else none, by_values if by_values is not None and need_values else none.clone()


for _device in ("CPU", "CUDA"):
    impl(_LIBRARY, "feature_major", _device)(_turn)
    impl(_LIBRARY, "row_major", _device)(_turn_back)
    impl(_LIBRARY, "linear", _device)(_forward)
    impl(_LIBRARY, "linear_backward", _device)(_backward)


@register_fake("sparsefleet::feature_major", lib=_LIBRARY)
def _fake_turn(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1], x.shape[0]).t()


@register_fake("sparsefleet::row_major", lib=_LIBRARY)
def _fake_turn_back(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@register_fake("sparsefleet::linear", lib=_LIBRARY)
def _fake(x: Tensor, values: Tensor, bias: Tensor | None, *index: Any) -> Tensor:
    return x.new_empty(_n_out(index[0], index[1], index[6]), x.shape[0]).t()


@register_fake("sparsefleet::linear_backward", lib=_LIBRARY)
def _fake_backward(grad: Tensor, x: Tensor, values: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    need_x, need_values = rest[-2:]
    by_x = x.new_empty(x.shape[1], x.shape[0]).t() if need_x else values.new_empty(0)
    return by_x, torch.empty_like(values) if need_values else values.new_empty(0)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, _, *index = inputs
    ctx.save_for_backward(x, values, *index[:5])
    ctx.sizes = index[5:]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, values, *index = ctx.saved_tensors
    need_x, need_values, need_bias = ctx.needs_input_grad[:3]
    by_x = by_values = None
    if need_x or need_values:
        found = torch.ops.sparsefleet.linear_backward(grad, x, values, *index, *ctx.sizes, need_x, need_values)
        by_x, by_values = (part if needed else None for part, needed in zip(found, (need_x, need_values), strict=True))
    return by_x, by_values, grad.sum(0) if need_bias else None, *[None] * 8


def _keep_layout(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.was_row_major = inputs[0].is_contiguous()


def _in_its_layout(ctx: Any, grad: Tensor) -> Tensor:
    """The gradient lies as the input did."""
    return row_major(grad) if ctx.was_row_major else grad


register_autograd("sparsefleet::feature_major", _in_its_layout, setup_context=_keep_layout, lib=_LIBRARY)
register_autograd("sparsefleet::row_major", lambda _, grad: grad, lib=_LIBRARY)
register_autograd("sparsefleet::linear_backward", native.only_once, lib=_LIBRARY)
register_autograd("sparsefleet::linear", _differentiate, setup_context=_keep, lib=_LIBRARY)


def _check(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern) -> None:
    """The kernels read where the pattern says, on its device, without another look."""
    n_out = pattern.shape[0]
    if values.numel() != pattern.nnz:
        raise UserError(f"{values.numel()} values for {pattern.nnz} connections")
    if bias is not None and bias.shape != (n_out,):
        raise UserError(f"a bias of shape {tuple(bias.shape)} for {n_out} output units")
    index = (pattern.crow, pattern.col, pattern.t_ptr, pattern.t_row, pattern.t_pos)
    devices = {str(part.device) for part in (x, values, bias, *index) if part is not None}
    if len(devices) > 1:
        raise UserError(f"the input and the layer lie on different devices: {', '.join(sorted(devices))}", fix="move one with .to(device)")


def sparse_linear(x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None = None) -> Tensor:
    """``x Wᵀ + bias``, with gradients for x, values and bias.

    float32 and float64 are computed as they are; half precisions are multiplied in float32 on the CPU, and come out as they went in.

    Args:
        x: ``(..., n_in)``.
        values: ``pattern.nnz`` of them, in its order, of any shape.
        bias: ``(n_out,)``.

    Returns:
        ``(..., n_out)``, feature-major.

    Raises:
        UserError: sizes that do not fit the pattern, tensors on different devices, numbers that are not floating-point, or forward-mode
            differentiation.
    """
    n_out, n_in = pattern.shape
    refuse_misfits(x, n_in)
    refuse_tangents(x, values, bias)
    flat, values = x.reshape(math.prod(x.shape[:-1]), n_in), values.reshape(-1).contiguous()
    bias = None if bias is None else bias.contiguous()
    _check(flat, values, bias, pattern)
    kind = wide(x, values)
    half = torch.get_autocast_dtype(flat.device.type) if torch.is_autocast_enabled(flat.device.type) else x.dtype
    result = half if kind == torch.float32 else kind
    if flat.shape[0] == 0 or pattern.nnz == 0:
        out = nothing(flat, values, n_out, result)
        return (out if bias is None else out + bias.to(out.dtype)).reshape(*x.shape[:-1], n_out)
    index = (pattern.crow, pattern.col, pattern.t_ptr, pattern.t_row, pattern.t_pos, n_in, -1 if pattern.fan_in is None else pattern.fan_in)
    with torch.autocast(flat.device.type, enabled=False):
        wide_bias = None if bias is None else bias.to(kind)
        kept = flat if flat.dtype == torch.bfloat16 and flat.is_cuda and engine(flat.device).name == "triton" else flat.to(kind)
        if not kept.t().is_contiguous():  # turned once, and kept for the backward pass so
            kept = torch.ops.sparsefleet.feature_major(kept)
        out = torch.ops.sparsefleet.linear(kept, values.to(kind), wide_bias, *index, pattern.panels).to(result)
    return out if x.dim() == 2 else out.reshape(*x.shape[:-1], n_out)
