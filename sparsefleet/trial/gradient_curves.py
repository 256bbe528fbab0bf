"""Gradient flow: the L2 norm of the loss's gradient by a layer's live weights (arXiv 2010.03533, whose gradient flow is the norm over all of them).

It is taken at the last step of an epoch, of the batch of that step, after the backward pass and before the weights change. A layer that is
stored dense counts with its whole weight, so a twin's curve lies beside the sparse one's. Biases and norms are left out.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsefleet.nn.module import SparseModule
from sparsefleet.trial.topology_curves import layer_spacing, of_layers

if TYPE_CHECKING:
    from sparsefleet.trial.training import Training


def tell_gradient_flow(training: Training) -> None:
    """The norm of every layer and of all of them together, as the step that is in progress sees it."""
    log, step = training.log, training.step + 1
    if step % training.per_epoch and step != training.total_steps:
        return
    norms = {name: _norm(training, name) for name in training.network.prunable}
    known = {name: norm for name, norm in norms.items() if norm is not None and math.isfinite(norm)}
    if len(known) == len(norms) and known:
        log.add("gradient_flow", step, math.sqrt(math.fsum(norm * norm for norm in known.values())), thin=True)
    for name in of_layers(list(known)):
        if log.is_due(f"gradient_flow/{name}", step, layer_spacing(training)):
            log.add(f"gradient_flow/{name}", step, known[name])


def _norm(training: Training, name: str) -> float | None:
    """Of one layer; None where no gradient reached it."""
    module = training.network.module.get_submodule(name)
    grad = module.grad_values() if isinstance(module, SparseModule) else getattr(getattr(module, "weight", None), "grad", None)
    if not isinstance(grad, Tensor):
        return None
    return float(torch.linalg.vector_norm(grad, dtype=torch.float64))
