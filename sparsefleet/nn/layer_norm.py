"""LayerNorm: torch's, for feature-major activations, with an optional ReLU behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsefleet.nn.places import has_hooks
from sparsefleet.ops import layer_norm


class LayerNorm(nn.LayerNorm):
    """A drop-in for ``nn.LayerNorm`` over the last dimension that keeps the memory layout of its input (arXiv 1607.06450).

    torch's own would turn a feature-major batch around and leave it so, and the next sparse layer would turn it back.

    Args:
        normalized_shape: features.
        relu: whether negative results become zero, in the same pass.
        **options: as for ``nn.LayerNorm``.
    """

    def __init__(self, normalized_shape: int | tuple[int] | list[int], *args: Any, relu: bool = False, **options: Any) -> None:
        super().__init__(normalized_shape, *args, **options)
        if len(self.normalized_shape) != 1:
            raise ValueError(f"LayerNorm normalises the last dimension alone, got {tuple(self.normalized_shape)}")
        self.relu = relu

    def forward(self, input: Tensor) -> Tensor:
        if self.weight is None or self.bias is None or torch.is_autocast_enabled(input.device.type):
            out = super().forward(input)
            return out.relu() if self.relu else out
        return layer_norm(input, self.weight, self.bias, self.eps, self.relu)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, relu={self.relu}"


def fuse_norms(network: nn.Module, sparse: list[nn.Module]) -> None:
    """Replaces torch's LayerNorms behind modules that keep activations feature-major, with the ReLU behind them where there is one.

    Only inside an ``nn.Sequential``, where what follows what can be read. Names, parameters and state dict keys stay: the norm is
    replaced under its name, and the ReLU by an ``nn.Identity``. One that has hooks stays what it is.
    """
    wanted = {id(module) for module in sparse if getattr(module, "keeps_feature_major", False)}
    for parent in list(network.modules()):
        if not isinstance(parent, nn.Sequential):
            continue
        names = list(parent._modules)
        for before, name, after in zip(names, names[1:], [*names[2:], None], strict=False):
            norm = parent._modules[name]
            if id(parent._modules[before]) not in wanted or type(norm) is not nn.LayerNorm or len(norm.normalized_shape) != 1:
                continue
            if has_hooks(norm):
                continue
            behind = parent._modules[after] if after is not None else None
            relu = type(behind) is nn.ReLU and not has_hooks(behind)
            setattr(parent, name, _fused(norm, relu))
            if relu and after is not None:
                setattr(parent, after, nn.Identity())


def _fused(norm: nn.LayerNorm, relu: bool) -> LayerNorm:
    """The same parameters in a LayerNorm of ours."""
    fused = LayerNorm(norm.normalized_shape[0], norm.eps, norm.elementwise_affine, bias=norm.bias is not None, relu=relu, device="meta")
    fused.weight, fused.bias = norm.weight, norm.bias
    return fused.train(norm.training)
