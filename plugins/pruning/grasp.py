"""GraSP (arXiv 2002.07376, Algorithm 1): pruning before training that preserves the gradient flow."""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from sparsefleet import Calibration, PluginError, Pruner, hookimpl


class Grasp(Pruner):
    """Keeps the gradient flow: connections whose removal lowers it least, or raises it most, go first.

    Made for ``distribution: global`` and one-shot pruning at step 0. Batch norms use the batch's own statistics, as the authors' code does.
    """

    name = "grasp"
    paper = "arXiv 2002.07376, Algorithm 1"
    rule = "S = -w * (H g), g and H of the loss of logits / T; the highest S go. Here score = -S = w * (H g), and the lowest go."
    cannot = (
        "Classification only. The authors' code draws the weights of Linear layers anew in the copy that it scores; the paper does not say so,"
        " and here the network is scored as it is."
    )
    needs_calibration = True
    made_for = "global"
    balanced_calibration = True

    temperature: float = Field(200.0, gt=0, description="T, divides the logits")
    per_class: int = Field(25, ge=1, description="calibration examples of each class")

    def calibration_examples(self, n_classes: int) -> int:
        """``per_class`` of each class."""
        return self.per_class * n_classes

    def score_all(self, calibration: Calibration) -> Mapping[str, Tensor]:
        """``(nnz,)`` float64 for every layer.

        Raises:
            PluginError: the task has no classes.
        """
        if not calibration.n_classes:
            raise PluginError("grasp draws its examples by class, and this task has none")
        weights = {name: conn.weight.detach().clone().requires_grad_() for name, conn in calibration.layers.items()}
        leaves = list(weights.values())
        n = sum(len(x) for x, _ in calibration.batches)

        def gradient(x: Tensor, y: Tensor, again: bool) -> tuple[Tensor, ...]:
            logits = calibration.forward(weights, x, batch_statistics=True) / self.temperature
            return torch.autograd.grad(calibration.loss(logits, y) * (len(x) / n), leaves, create_graph=again)

        grad = [torch.zeros_like(w) for w in leaves]
        for x, y in calibration.batches:
            grad = [total + part for total, part in zip(grad, gradient(x, y, False), strict=True)]
        hessian_grad = [torch.zeros_like(w) for w in leaves]
        for x, y in calibration.batches:
            flow = torch.stack([(g * part).sum() for g, part in zip(grad, gradient(x, y, True), strict=True)]).sum()
            hessian_grad = [total + part for total, part in zip(hessian_grad, torch.autograd.grad(flow, leaves), strict=True)]
        return {name: w.detach().double() * hg for (name, w), hg in zip(weights.items(), hessian_grad, strict=True)}


@hookimpl
def sparsefleet_pruners() -> list[type[Pruner]]:
    """Registers this module's pruner."""
    return [Grasp]
