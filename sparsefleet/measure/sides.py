"""What is timed: the forward pass or the whole training step of a network, as a callable of one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparsefleet.measure.config import Op
from sparsefleet.nn.module import SparseModule
from sparsefleet.nn.topology import Topology
from sparsefleet.plugin import DataInfo, Dataset, Progress, Rewirer
from sparsefleet.trial.build import DTYPES
from sparsefleet.trial.objective import loss_of, make_optimizer
from sparsefleet.trial.spec import TrialSpec

N_INPUTS = 4
STILL_LR = 1e-12
"""Learning rate of a timed step: the same work as any other, but ten thousand repetitions do not carry the weights away."""

Batch = tuple[Tensor, Tensor]


class Side(Protocol):
    """A timed callable that keeps what its last call returned, for the audit."""

    last: Any

    def __call__(self, batch: Any) -> object:
        """One call."""


def batches(dataset: Dataset, spec: TrialSpec, batch_size: int, device: str, n: int = N_INPUTS) -> list[Batch]:
    """``n`` invented batches ``(x, y)`` of the data set's shapes."""
    data = dataset.fake(n * batch_size)
    dtype = DTYPES[spec.train.precision]
    x = (data.x.to(dtype) if data.x.is_floating_point() else data.x).to(device)
    y = (data.y.to(dtype) if data.y.is_floating_point() else data.y).to(device)
    return list(zip(*(tuple(part.clone() for part in torch.split(whole, batch_size)) for whole in (x, y)), strict=True))


class Forward:
    """The forward pass in inference mode, in eval mode; ``last`` is its output.

    Args:
        run: what computes, if it is not ``network`` itself but a compiled form of it.
    """

    def __init__(self, network: nn.Module, spec: TrialSpec, run: Callable[[Tensor], Tensor] | None = None) -> None:
        network.eval()
        self.network, self._run = network, run or network
        self._bf16 = spec.train.precision == "bf16"
        self.last: Any = None

    def __call__(self, batch: Any) -> object:
        """One forward pass."""
        x: Tensor = batch[0]
        with torch.inference_mode():
            if not self._bf16:
                self.last = self._run(x)
                return self.last
            with torch.autocast(x.device.type, dtype=torch.bfloat16):
                self.last = self._run(x)
                return self.last


class Step:
    """Forward, loss, backward, the optimizer's step and what the storage and the method do after every step; ``last`` is the loss.

    Args:
        run: what computes, if it is not ``network`` itself but a compiled form of it.
        method: the rewirer's own work, if it is part of the time.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: TrialSpec,
        info: DataInfo,
        run: Callable[[Tensor], Tensor] | None = None,
        method: Method | None = None,
    ) -> None:
        network.train()
        self.network, self._run, self._info, self._method = network, run or network, info, method
        lr = spec.optimizer.lr if method and method.at_every_step else STILL_LR
        self.optimizer = make_optimizer(spec.optimizer.model_copy(update={"lr": lr}), spec.train, list(network.parameters()))
        self._lr = lr
        self._sparse = [module for module in network.modules() if isinstance(module, SparseModule)]
        self._bf16, self._smoothing = spec.train.precision == "bf16", spec.train.label_smoothing
        self.last: Any = None
        if method:
            method.attach(self.optimizer)

    def loss(self, batch: Any) -> Tensor:
        """The training loss of one batch."""
        x, y = batch
        if not self._bf16:
            return loss_of(self._run(x), y, self._info, self._smoothing)
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return loss_of(self._run(x).float(), y, self._info, self._smoothing)

    def __call__(self, batch: Any) -> object:
        """One training step that is not due for rewiring, unless every step is."""
        method = self._method
        if method and method.at_every_step:
            self.due(batch)
            return self.last
        self.optimizer.zero_grad(set_to_none=True)
        self.last = loss = self.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        for module in self._sparse:
            module.enforce()
        if method:
            method.after_step(self._lr)
        return loss

    def due(self, batch: Any) -> None:
        """One training step with an update of the topology, as training does it."""
        method = self._method
        assert method is not None
        method.watch(True)
        self.optimizer.zero_grad(set_to_none=True)
        self.last = loss = self.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        if not method.rewirer.replaces_step:
            self.optimizer.step()
            for module in self._sparse:
                module.enforce()
            method.after_step(self._lr)
        method.rewire()
        method.watch(False)


class Method:
    """A rewirer's work in a timed step.

    Args:
        steps: steps of the whole training, and of one epoch.
    """

    def __init__(
        self, rewirer: Rewirer, modules: dict[str, SparseModule], shapes: dict[str, tuple[int, ...]], steps: tuple[int, int]
    ) -> None:
        self.rewirer, self._modules, self._shapes = rewirer, modules, shapes
        self._total, self._per_epoch = steps
        due = [step for step in range(1, self._total + 1) if rewirer.due(Progress(step, self._total, self._per_epoch))]
        self.share = len(due) / self._total
        """Share of the training's steps at which the topology is updated; below 1 an update is timed apart and charged by this share."""
        self.at_every_step = self.share == 1.0
        self._progress = Progress(due[len(due) // 2], self._total, self._per_epoch) if due else None
        self._step = 0
        self._topology: Topology | None = None

    @property
    def acts(self) -> bool:
        """Whether there is any work after a step or at some of them."""
        return self._progress is not None or type(self.rewirer).on_step is not Rewirer.on_step

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """From here on the optimizer's slots follow every change."""
        self._topology = Topology(self._modules, optimizer, 0, self._shapes)
        self._topology.start(self.rewirer)

    def after_step(self, lr: float) -> None:
        """What the method does after every optimizer step."""
        assert self._topology is not None
        self._step += 1
        self._topology.on_step(self.rewirer, lr, self._step)

    def watch(self, on: bool) -> None:
        """Whether the layers keep what growing by gradient needs."""
        if self._topology is not None and self.rewirer.needs_absent_grad:
            self._topology.watch_absent(on)

    def rewire(self) -> None:
        """One update, as in the middle of those of the training; other draws each time."""
        assert self._topology is not None
        assert self._progress is not None
        self._step += 1
        self._topology.rewire(self.rewirer, self._progress)


def side(op: Op, network: nn.Module, spec: TrialSpec, info: DataInfo, run: Callable[[Tensor], Tensor] | None = None) -> Forward | Step:
    """``op`` of ``network`` as a callable of one batch."""
    return Forward(network, spec, run) if op == "forward" else Step(network, spec, info, run)


def flags() -> dict[str, Any]:
    """Threads and precision flags as they are now: the same for all sides, or the figure is refused."""
    return {
        "threads": torch.get_num_threads(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "default_dtype": str(torch.get_default_dtype()),
        "denormals": _flushes_denormals(),
        "autocast": torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"),
        "mkldnn": torch.backends.mkldnn.enabled,
        "fp32": [_fp32_precision(name) for name in ("", "mkldnn.matmul", "cuda.matmul")],
    }


def _fp32_precision(backend: str) -> str:
    found: Any = torch.backends
    for part in filter(None, backend.split(".")):
        found = getattr(found, part, None)
    return str(getattr(found, "fp32_precision", "unknown"))  # since torch 2.9


def _flushes_denormals() -> bool:
    return float(torch.tensor([2e-41], dtype=torch.float32) * 1.0) == 0.0


def set_flags(spec: TrialSpec, threads: int) -> None:
    """Threads and precision flags of the trial, for all sides alike."""
    torch.set_num_threads(threads)
    tf32 = spec.train.precision == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False
