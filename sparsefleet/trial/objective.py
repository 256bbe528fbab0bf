"""The loss, the metric, and the learning rate: functions of the task and the spec."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsefleet.nn.module import SparseModule
from sparsefleet.plugin import DataInfo, TensorData
from sparsefleet.trial.spec import AdamW, CosineLr, LrSchedule, MultiStepLr, Optimizer, RMSprop, Sgd, StepLr, Train

EVAL_BATCH = 1000
EVAL_VALUES = 1 << 24
"""Most values in a layer's output while a network is evaluated: 64 MiB. Above 16,777 units the batch is smaller than ``EVAL_BATCH``."""


def loss_of(output: Tensor, y: Tensor, info: DataInfo, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy, or mean squared error; a scalar."""
    if info.task == "classification":
        return F.cross_entropy(output, y, label_smoothing=label_smoothing)
    return F.mse_loss(output, y)


@dataclass(frozen=True)
class Score:
    """A network on a split: every example counts once."""

    loss: float
    metric: float
    n: int


def eval_batch(network: nn.Module, x: Tensor | None = None) -> int:
    """Examples that are evaluated at a time.

    Args:
        x: one example, ``(1, *input_shape)``, for networks whose layers' outputs depend on the size of a picture.
    """
    sides = [side for module in network.modules() for side in _sides(module)]
    if x is not None and any(isinstance(module, nn.Conv2d) for module in network.modules()):
        sides += _outputs(network, x)
    fitting = EVAL_VALUES // max(sides, default=1)
    return EVAL_BATCH if fitting >= EVAL_BATCH else max(1, fitting // 16 * 16 or fitting)


def _outputs(network: nn.Module, x: Tensor) -> list[int]:
    """Values in the output of each convolution for one example."""
    found: list[int] = []
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    handles = [module.register_forward_hook(lambda _, __, out: found.append(out.numel())) for module in convolutions]
    try:
        network(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _sides(module: nn.Module) -> tuple[int, ...]:
    if isinstance(module, SparseModule):
        return module.matrix_shape
    return (module.in_features, module.out_features) if isinstance(module, nn.Linear) else ()


def evaluate(network: nn.Module, data: TensorData, info: DataInfo, autocast: torch.dtype | None = None) -> Score:
    """Accuracy (share of right classes) or mean squared error over all examples of ``data``; the network is left in its mode."""
    was_training = network.training
    network.eval()
    n, loss, right = data.x.shape[0], 0.0, 0.0
    with torch.inference_mode():
        with torch.autocast(data.x.device.type, dtype=autocast or torch.bfloat16, enabled=autocast is not None):
            step = eval_batch(network, data.x[:1] if n else None)
        for start in range(0, n, step):
            x, y = data.x[start : start + step], data.y[start : start + step]
            with torch.autocast(x.device.type, dtype=autocast or torch.bfloat16, enabled=autocast is not None):
                output = network(x)
            output = output.float() if autocast is not None else output
            loss += float(loss_of(output, y, info)) * x.shape[0]
            if info.task == "classification":
                right += float((output.argmax(1) == y).sum())
    network.train(was_training)
    return Score(loss / n, right / n if info.task == "classification" else loss / n, n)


def chance(info: DataInfo, y: Tensor) -> float:
    """What a diverged trial counts as: one class in n, or the error of predicting the mean."""
    if info.task == "classification":
        return 1.0 / info.n_outputs
    return float(y.double().var(0, unbiased=False).mean())


def make_optimizer(kind: Optimizer, train: Train, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The torch optimizer of a spec, in torch's fused form where there is one: on a CPU it takes a sixth of the time, dense or sparse."""
    decay = train.weight_decay
    if isinstance(kind, Sgd):
        return torch.optim.SGD(
            parameters,
            lr=kind.lr,
            momentum=kind.momentum,
            nesterov=kind.nesterov,
            dampening=kind.dampening,
            weight_decay=decay,
            fused=True,
        )
    if isinstance(kind, RMSprop):
        return torch.optim.RMSprop(parameters, lr=kind.lr, alpha=kind.alpha, momentum=kind.momentum, eps=kind.eps, weight_decay=decay)
    cls = torch.optim.AdamW if isinstance(kind, AdamW) else torch.optim.Adam
    return cls(parameters, lr=kind.lr, betas=kind.betas, eps=kind.eps, weight_decay=decay, fused=True)


def lr_factor(schedule: LrSchedule, step: int, total_steps: int) -> float:
    """The learning rate at ``step`` (finished steps) relative to the optimizer's."""
    done = step / max(total_steps, 1)
    if isinstance(schedule, StepLr):
        return float(schedule.factor ** (step // schedule.every))
    if isinstance(schedule, MultiStepLr):
        return float(schedule.factor ** sum(done >= at for at in schedule.at))
    if isinstance(schedule, CosineLr):
        if done < schedule.warmup:
            return (step + 1) / max(round(schedule.warmup * total_steps), 1)
        p = (done - schedule.warmup) / (1 - schedule.warmup)
        return schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * p))
    return 1.0
