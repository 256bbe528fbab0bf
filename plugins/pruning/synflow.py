"""SynFlow (arXiv 2006.05467, Algorithm 1): iterative synaptic flow pruning, without data."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sparsefleet import Calibration, PluginError, Pruner, hookimpl


class SynFlow(Pruner):
    """Scores a connection by the flow through it when all weights have their magnitude and the input is all ones.

    Made for ``distribution: global``. It goes down to the target in 100 rounds, each scored anew, so that no layer collapses.
    """

    name = "synflow"
    paper = "arXiv 2006.05467, Algorithm 1"
    rule = "R = sum of the outputs of the network of |w| on an input of ones; score = dR/d|w| * |w|; round k of 100 keeps density^(k/100)"
    cannot = (
        "Needs an input that can be all ones: no token numbers. Sparse or bounded activations and layer norms break the conservation that the"
        " paper proves."
    )
    needs_calibration = True
    made_for = "global"
    rounds = 100

    def calibration_examples(self, n_classes: int) -> int:
        """One, of which only the shape is used."""
        return 1

    def score_all(self, calibration: Calibration) -> Mapping[str, Tensor]:
        """``(nnz,)`` float64 for every layer: in float32 the flow through a deep or wide network overflows or vanishes.

        Raises:
            PluginError: the inputs are token numbers, or the flow is too large for float64.
        """
        x = calibration.batches[0][0][:1]
        if not x.is_floating_point():
            raise PluginError(f"synflow feeds ones to the network, and its inputs are {x.dtype} numbers")
        weights = {name: conn.weight.detach().double().abs().requires_grad_() for name, conn in calibration.layers.items()}
        total = calibration.forward(weights, torch.ones_like(x, dtype=torch.float64), magnitudes=True).sum()
        if not bool(torch.isfinite(total)):
            raise PluginError(f"the flow through the network is {total.item()}: it does not fit float64")
        grads = torch.autograd.grad(total, list(weights.values()))
        return {name: (w.detach() * grad).abs() for (name, w), grad in zip(weights.items(), grads, strict=True)}


@hookimpl
def sparsefleet_pruners() -> list[type[Pruner]]:
    """Registers this module's pruner."""
    return [SynFlow]
