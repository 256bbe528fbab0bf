"""SNIP (arXiv 1810.02340, Algorithm 1): single-shot pruning by connection sensitivity, before training."""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from sparsefleet import Calibration, Pruner, hookimpl


class Snip(Pruner):
    """Scores a connection by how much the loss would change if it were scaled: the magnitude of gradient times weight.

    Made for ``distribution: global`` and one-shot pruning at step 0; the paper's sum over all sensitivities changes no order and is left out.
    """

    name = "snip"
    paper = "arXiv 1810.02340, Algorithm 1"
    rule = "score = |sum over examples of dL/dw * w|; the gradient is summed over the batches before its magnitude is taken"
    cannot = (
        "The paper draws weights by variance scaling; here they start uniform in +-1/sqrt(fan-in), as torch.nn.Linear, with a third of that"
        " variance. With distribution: uniform it is layer-wise and not the paper's."
    )
    needs_calibration = True
    made_for = "global"

    examples: int = Field(128, ge=1, description="training examples that the gradient is taken over (paper: one batch of 100 or 128)")

    def calibration_examples(self, n_classes: int) -> int:
        """``examples``."""
        return self.examples

    def score_all(self, calibration: Calibration) -> Mapping[str, Tensor]:
        """``(nnz,)`` float64 for every layer."""
        weights = {name: conn.weight.detach().clone().requires_grad_() for name, conn in calibration.layers.items()}
        total = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in weights.items()}
        for x, y in calibration.batches:
            loss = calibration.loss(calibration.forward(weights, x), y) * len(x)
            for name, grad in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
                total[name] += grad
        return {name: (total[name] * w.detach()).abs() for name, w in weights.items()}


@hookimpl
def sparsefleet_pruners() -> list[type[Pruner]]:
    """Registers this module's pruner."""
    return [Snip]
