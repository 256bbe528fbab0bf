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
    if pruner.needs_calibration:
        layers = {name: conn for name, conn in training.topology.connections("prune", training.step).items() if name in names}
        batch = _calibration_batch(training, pruner.calibration_examples(training.splits.info.n_outputs), pruner.balanced_calibration)
        calibration = NetworkCalibration(training.network.module, training.network.sparse, layers, [batch], training.splits.info)
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
    training.loss(*_calibration_batch(training, training.spec.train.batch_size, False)).backward()  # type: ignore[no-untyped-call]
    for buffer, before in buffers:
        buffer.copy_(before)


def _calibration_batch(training: Training, n: int, balanced: bool) -> tuple[Tensor, Tensor]:
    train, rng = training.splits.train, Rng(training.spec.seed, "calibration", training.step)
    order = torch.argsort(rng.uniform(train.x.shape[0]), stable=True).to(train.x.device)
    if balanced:
        classes = train.y[order]
        per_class = max(1, n // training.splits.info.n_outputs)
        chosen = torch.cat([order[classes == label][:per_class] for label in range(training.splits.info.n_outputs)])
    else:
        chosen = order[:n]
    return train.x[chosen], train.y[chosen]
