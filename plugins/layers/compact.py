"""Compact: the network without the units that its pruner removed, in torch's own dense modules."""

from __future__ import annotations

from sparsefleet_plugins.layers.dense import Dense

from sparsefleet import Layer, hookimpl


class Compact(Dense):
    """A really smaller dense network, without the units that pattern ``neuron`` removed: their biases, norms and readers are cut along.

    Trained masked until ``convert_at``; from then on every library runs it, since it is torch's own Linear, Conv2d and norms.
    """

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
    narrows = True


@hookimpl
def sparsefleet_layers() -> list[type[Layer]]:
    """Registers the compact layer."""
    return [Compact]
