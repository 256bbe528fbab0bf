"""The scores that a pruner gives to a network in training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsefleet.rng import Rng
from sparsefleet.trial.calibrate import NetworkCalibration, score_whole_model

if TYPE_CHECKING:
    from sparsefleet.trial.training import Training


def scores(training: Training, names: list[str]) -> dict[str, Tensor]:
    """``(nnz,)`` scores of the named layers by the training's pruner."""
    pruner = training.pruner
    assert pruner is not None
    asked = training.spec.method.distribution
    if pruner.made_for not in ("", asked) and training.spec.method.pattern.kind != "n:m":
        training.log.warn(f"{pruner.name} is defined for distribution {pruner.made_for}; this trial has {asked}")
    if pruner.needs_calibration:
        layers = {name: conn for name, conn in training.topology.connections("prune", training.step).items() if name in names}
        info = training.splits.info
        classes = info.n_outputs if info.task == "classification" else 0
        batches = _calibration_batches(training, max(1, pruner.calibration_examples(classes)), pruner.balanced_calibration and classes > 0)
        calibration = NetworkCalibration(training.network.module, training.network.sparse, layers, batches, info)
        return score_whole_model(pruner, calibration)
    if pruner.needs_grad and any(module.grad_values() is None for module in training.network.sparse.values()):
        _fresh_gradients(training)
    return training.topology.score(pruner, training.step)


def _fresh_gradients(training: Training) -> None:
    """Gradients of one batch for a pruner; statistics that modules keep of their inputs stay as they were."""
    buffers = [(buffer, buffer.clone()) for buffer in training.network.module.buffers()]
    training.optimizer.zero_grad(set_to_none=True)
    if training.method is not None:
        training.topology.watch_absent(training.method.needs_dense)
    (batch,) = _calibration_batches(training, training.spec.train.batch_size, False)
    training.loss(*batch).backward()  # type: ignore[no-untyped-call]
    for buffer, before in buffers:
        buffer.copy_(before)


def _calibration_batches(training: Training, n: int, balanced: bool) -> list[tuple[Tensor, Tensor]]:
    """``n`` random training examples, the same at every call of one step, in equal batches of at most the training's size.

    Args:
        balanced: the first ``n / n_outputs`` of each class, or all that there are.
    """
    train, info, rng = training.splits.train, training.splits.info, Rng(training.spec.seed, "calibration", training.step)
    order = torch.argsort(rng.uniform(train.x.shape[0]), stable=True).to(train.x.device)
    if balanced:
        labels, per_class = train.y[order], max(1, n // info.n_outputs)
        chosen = torch.zeros_like(order, dtype=torch.bool)
        for label in range(info.n_outputs):
            chosen[torch.nonzero(labels == label).flatten()[:per_class]] = True
        order = order[chosen]
    else:
        order = order[:n]
    n_batches = -(-order.numel() // training.spec.train.batch_size)
    return [(train.x[part], train.y[part]) for part in torch.tensor_split(order, n_batches)]
