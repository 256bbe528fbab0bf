"""What is timed: the forward pass or the whole training step of a network, as a callable of one batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsefleet.measure.clock import Call
from sparsefleet.measure.config import Op
from sparsefleet.nn.module import SparseModule
from sparsefleet.plugin import DataInfo, Dataset
from sparsefleet.trial.build import DTYPES
from sparsefleet.trial.objective import loss_of, make_optimizer
from sparsefleet.trial.spec import TrialSpec

N_INPUTS = 4
STILL_LR = 1e-12
"""Learning rate of a timed step: the same work as any other, but ten thousand repetitions do not carry the weights away."""

Batch = tuple[Tensor, Tensor]


def batches(dataset: Dataset, spec: TrialSpec, batch_size: int, device: str) -> list[Batch]:
    """``N_INPUTS`` invented batches ``(x, y)`` of the data set's shapes."""
    data = dataset.fake(N_INPUTS * batch_size)
    dtype = DTYPES[spec.train.precision]
    x = (data.x.to(dtype) if data.x.is_floating_point() else data.x).to(device)
    y = (data.y.to(dtype) if data.y.is_floating_point() else data.y).to(device)
    return list(zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True))


def side(op: Op, network: nn.Module, spec: TrialSpec, info: DataInfo) -> Call:
    """``op`` of ``network`` as a callable of one batch."""
    return forward(network, spec) if op == "forward" else step(network, spec, info)


def forward(network: nn.Module, spec: TrialSpec) -> Call:
    """The forward pass in inference mode, in eval mode."""
    network.eval()
    bf16 = spec.train.precision == "bf16"

    def call(batch: Any) -> Tensor:
        x: Tensor = batch[0]
        with torch.inference_mode():
            if not bf16:
                return network(x)  # type: ignore[no-any-return]
            with torch.autocast(x.device.type, dtype=torch.bfloat16):
                return network(x)  # type: ignore[no-any-return]

    return call


def step(network: nn.Module, spec: TrialSpec, info: DataInfo) -> Call:
    """Forward, loss, backward, the optimizer's step and what sparse storage does after it; a rewirer's own work is not in it."""
    network.train()
    optimizer = make_optimizer(spec.optimizer.model_copy(update={"lr": STILL_LR}), spec.train, list(network.parameters()))
    sparse = [module for module in network.modules() if isinstance(module, SparseModule)]
    bf16, smoothing = spec.train.precision == "bf16", spec.train.label_smoothing

    def call(batch: Any) -> None:
        x, y = batch
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=bf16):
            output = network(x)
            loss = loss_of(output.float() if bf16 else output, y, info, smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        for module in sparse:
            module.enforce()

    return call


def set_flags(spec: TrialSpec, threads: int) -> None:
    """Threads and precision flags of the trial, for all sides alike."""
    torch.set_num_threads(threads)
    tf32 = spec.train.precision == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False
