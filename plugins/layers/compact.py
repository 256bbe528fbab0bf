"""Compact: the network without the units that its pruner removed, in torch's own dense modules."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from sparsefleet import Connections, Layer, hookimpl


class Compact(Layer):
    """A really smaller dense network: what pattern ``neuron`` removed is not there any more, neither in weights nor in biases, norms and what reads
    them. Trained masked until ``convert_at``; from then on every library runs it, since it is torch's own Linear, Conv2d and norms."""

    name = "compact"
    paper = "arXiv 1608.08710, section 3; arXiv 2301.12900, section 3 (what goes together)"
    rule = (
        "unit j of a layer goes with its row, its bias, its entry in every norm behind it, and the columns of every layer that reads it;"
        " a share r of all units leaves about r**2 of the weights"
    )
    cannot = (
        "Only for a pruner with pattern neuron. The units must be followed through the network: Linear, Conv2d, BatchNorm, LayerNorm, pooling,"
        " flatten, additions and activations that act on each element; grouped convolutions, attention, concatenation and k-winners end the"
        " trial with a reason (keep_dense leaves them out). Inputs and outputs stay."
    )
    execution = "compact_dense"
    kinds = ("Linear", "Conv2d")
    topology: ClassVar[Literal["all"]] = "all"
    stores_dense = True
    narrows = True

    def build(self, template: nn.Module, conn: Connections, bias: Tensor | None) -> nn.Module:
        """``template``, narrow already, with the given weights; ``conn`` must hold every site of it."""
        module = template.to_empty(device=conn.weight.device).to(conn.weight.dtype)
        with torch.no_grad():
            module.weight.copy_(conn.weight.view_as(module.weight))
            if bias is not None:
                module.bias.copy_(bias)
        return module


@hookimpl
def sparsefleet_layers() -> list[type[Layer]]:
    """Registers the compact layer."""
    return [Compact]
