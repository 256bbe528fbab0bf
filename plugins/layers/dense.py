"""The layer of the dense twin: torch's own modules, every site stored."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from sparsefleet import Connections, Layer, hookimpl


class Dense(Layer):
    """torch's own dense module."""

    name = "dense"
    execution = "dense"
    kinds = ("Linear", "Conv2d")
    topology: ClassVar[Literal["all"]] = "all"
    stores_dense = True

    def build(self, template: nn.Module, conn: Connections, bias: Tensor | None) -> nn.Module:
        """``template`` with the given weights; ``conn`` must hold every site."""
        module = template.to_empty(device=conn.weight.device).to(conn.weight.dtype)
        with torch.no_grad():
            module.weight.copy_(conn.weight.view_as(module.weight))
            if bias is not None:
                module.bias.copy_(bias)
        return module


@hookimpl
def sparsefleet_layers() -> list[type[Layer]]:
    """Registers the dense layer."""
    return [Dense]
