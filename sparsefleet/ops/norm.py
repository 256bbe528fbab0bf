"""Layer normalisation of feature-major activations, with the ReLU behind it, as a ``torch.library`` operator.

torch's own normalises rows that are contiguous: a feature-major batch would be transposed before and after.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import Library, impl, register_autograd, register_fake
from torch.nn import functional as F

from sparsefleet.ops import native

_LIBRARY = Library("sparsefleet", "FRAGMENT")
_LIBRARY.define("layer_norm(Tensor x, Tensor weight, Tensor bias, float eps, bool relu) -> (Tensor, Tensor, Tensor)")
_LIBRARY.define(
    "layer_norm_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor rstd, bool relu) -> (Tensor, Tensor, Tensor)"
)


@impl(_LIBRARY, "layer_norm", "CPU")
def _forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool) -> tuple[Tensor, Tensor, Tensor]:
    from sparsefleet.ops.linear import feature_major

    if native.library() is None:
        y, *moments = torch.native_layer_norm(x, x.shape[1:], weight, bias, eps)
        mean, rstd = (moment.reshape(-1) for moment in moments)
        return feature_major(y.relu_() if relu else y).t(), mean, rstd
    y, mean, rstd = native.norm_forward(feature_major(x), weight, bias, eps, relu)
    return y.t(), mean, rstd


@impl(_LIBRARY, "layer_norm_backward", "CPU")
def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    from sparsefleet.ops.linear import feature_major

    if native.library() is None:
        moments = mean[:, None], rstd[:, None]
        if relu:
            grad = grad.masked_fill((x - moments[0]).mul_(moments[1]).mul_(weight).add_(bias) <= 0, 0)
        by_x, by_weight, by_bias = torch.ops.aten.native_layer_norm_backward(grad, x, x.shape[1:], *moments, weight, bias, [True] * 3)
        return feature_major(by_x).t(), by_weight, by_bias
    by_x, by_weight, by_bias = native.norm_backward(feature_major(grad), feature_major(x), weight, bias, mean, rstd, relu)
    return by_x.t(), by_weight, by_bias


@register_fake("sparsefleet::layer_norm", lib=_LIBRARY)
def _fake(x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape[1], x.shape[0]).t(), x.new_empty(x.shape[0]), x.new_empty(x.shape[0])


@register_fake("sparsefleet::layer_norm_backward", lib=_LIBRARY)
def _fake_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape[1], x.shape[0]).t(), torch.empty_like(weight), torch.empty_like(bias)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, _, ctx.relu = inputs
    ctx.save_for_backward(x, weight, bias, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    found = torch.ops.sparsefleet.layer_norm_backward(grad, *ctx.saved_tensors, ctx.relu)
    return *(part if needed else None for part, needed in zip(found, ctx.needs_input_grad, strict=False)), None, None


register_autograd("sparsefleet::layer_norm_backward", native.only_once, lib=_LIBRARY)
register_autograd("sparsefleet::layer_norm", _differentiate, setup_context=_keep, lib=_LIBRARY)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, relu: bool = False) -> Tensor:
    """``x`` normalised over its last dimension, scaled and shifted (arXiv 1607.06450, equation 4); in x's memory layout.

    What is feature-major float32 on a CPU stays so; everything else goes through torch.

    Args:
        x: ``(..., features)``.
        weight: ``(features,)``.
        bias: ``(features,)``.
        relu: whether negative results become zero.
    """
    kernels = x.dim() == 2 and x.numel() > 0 and x.device.type == "cpu"
    if kernels and {x.dtype, weight.dtype, bias.dtype} == {torch.float32} and x.t().is_contiguous() and not x.is_contiguous():
        out: Tensor = torch.ops.sparsefleet.layer_norm(x, weight.contiguous(), bias.contiguous(), eps, relu)[0]
        return out
    y = F.layer_norm(x, (x.shape[-1],), weight, bias, eps)
    return F.relu(y) if relu else y
