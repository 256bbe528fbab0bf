"""First-order Taylor pruning (arXiv 1906.10771, section 3): what the loss would change by, on trained weights."""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from sparsefleet import Calibration, Pruner, hookimpl


class Taylor(Pruner):
    """Scores a connection by the squared first-order change of the loss if it were removed, averaged over batches.

    For a trained network: prune it with a schedule, or after training. A structured pattern sums the squares of a unit, as the paper does.
    """

    name = "taylor"
    paper = "arXiv 1906.10771, section 3"
    rule = "score = mean over batches of (dL/dw * w)^2, L the batch's mean loss"
    cannot = (
        "The paper's moving average over prunings and its gates after batch norms are not here: each pruning scores anew, with the network as"
        " it is in evaluation. Before training, snip is the criterion of this form."
    )
    needs_calibration = True

    examples: int = Field(1024, ge=1, description="training examples, in batches of the training's size, that the score averages over")

    def calibration_examples(self, n_classes: int) -> int:
        """``examples``."""
        return self.examples

    def score_all(self, calibration: Calibration) -> Mapping[str, Tensor]:
        """``(nnz,)`` float64 for every layer."""
        weights = {name: conn.weight.detach().clone().requires_grad_() for name, conn in calibration.layers.items()}
        total = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in weights.items()}
        for x, y in calibration.batches:
            grads = torch.autograd.grad(calibration.loss(calibration.forward(weights, x), y), list(weights.values()))
            for (name, w), grad in zip(weights.items(), grads, strict=True):
                total[name] += (grad.double() * w.detach()).square()
        return {name: value / len(calibration.batches) for name, value in total.items()}


@hookimpl
def sparsefleet_pruners() -> list[type[Pruner]]:
    """Registers this module's pruner."""
    return [Taylor]
