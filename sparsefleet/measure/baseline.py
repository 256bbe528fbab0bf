"""The dense baseline: the fastest correct one of the dense net as it is and the compiled one, chosen before the clock of the comparison starts."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from sparsefleet.home import cache_dir
from sparsefleet.measure.clock import Clock
from sparsefleet.measure.correctness import FLOOR, relative_error
from sparsefleet.measure.sides import Batch, Forward, Step, side
from sparsefleet.nn.expose import packed
from sparsefleet.plugin import DataInfo
from sparsefleet.trial.record import BaselineTried
from sparsefleet.trial.spec import TrialSpec

EAGER, COMPILED = "dense_eager", "dense_compiled"
NAMES = (EAGER, COMPILED)
_CLEARLY = 0.98
"""The compiled net must need less than this share of the eager one's time: below that the difference is noise."""
_BLOCKS = 15
_WARM_S = 0.3

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Baseline:
    """The dense side and its second copy, and what else was tried."""

    name: str
    dense: Forward | Step
    second: Forward | Step
    tried: list[BaselineTried]


@dataclass
class DenseNet:
    """A dense net that can be the baseline of ``op``.

    Attributes:
        chosen: candidates of an earlier comparison with the same dense net, whose choice is taken over; None: choose.
    """

    op: str
    network: nn.Module
    spec: TrialSpec
    info: DataInfo
    threads: int
    chosen: list[BaselineTried] | None = None

    def side(self, name: str) -> Forward | Step:
        """A fresh copy of the net in one of its forms, as a callable; recurrent modules are torch's own."""
        network = packed(copy.deepcopy(self.network))
        if name == EAGER:
            return side(self.op, network, self.spec, self.info)  # type: ignore[arg-type]
        return side(self.op, network, self.spec, self.info, compiled(network, self.threads))  # type: ignore[arg-type]


def compiled(network: nn.Module, threads: int) -> Run:
    """``torch.compile`` of the network; compiled code is kept for the next process, per number of threads, which is part of it."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of workers beside a measurement
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "inductor" / f"threads-{threads}"))
    return torch.compile(network, dynamic=False)


def choose(net: DenseNet, inputs: Sequence[Batch], clock: Clock) -> Baseline:
    """The fastest correct form of the dense net, by timings of their own."""
    if net.chosen is not None:
        name = next(one.name for one in net.chosen if not one.why_not)
        if name == EAGER:
            return Baseline(EAGER, net.side(EAGER), net.side(EAGER), net.chosen)
        return Baseline(name, _warm(net, inputs), _warm(net, inputs), net.chosen)
    eager = net.side(EAGER)
    started = time.monotonic()
    try:
        fast = _warm(net, inputs)
    except Exception as error:  # noqa: BLE001 the compiler and its tools end in every way there is, no compiler at all among them
        lines = str(error).strip().splitlines() or [type(error).__name__]
        tried = [BaselineTried(name=EAGER), BaselineTried(name=COMPILED, why_not=f"does not compile here: {lines[0][:200]}")]
        return Baseline(EAGER, eager, net.side(EAGER), tried)
    compile_s = time.monotonic() - started
    wrong = _disagrees(eager, fast, inputs[0], net.spec.train.precision)
    times = _race({EAGER: eager, COMPILED: fast}, inputs, clock)
    wins = not wrong and times[COMPILED] < _CLEARLY * times[EAGER]
    slower = f"not clearly faster: {times[COMPILED] / times[EAGER]:.2f} of the eager time"
    tried = [
        BaselineTried(name=EAGER, median_s=times[EAGER], why_not="the compiled net is faster" if wins else ""),
        BaselineTried(name=COMPILED, median_s=times[COMPILED], compile_s=compile_s, why_not="" if wins else wrong or slower),
    ]
    if wins:
        return Baseline(COMPILED, fast, _warm(net, inputs), tried)
    return Baseline(EAGER, eager, net.side(EAGER), tried)


def _warm(net: DenseNet, inputs: Sequence[Batch]) -> Forward | Step:
    """The compiled side after the calls that compile it."""
    fast = net.side(COMPILED)
    for batch in inputs[:2]:
        fast(batch)
    return fast


def _disagrees(eager: Forward | Step, fast: Forward | Step, batch: Batch, precision: str) -> str:
    """Why the compiled side is wrong, or an empty string."""
    eager(batch), fast(batch)
    pairs = [(fast.last, eager.last)]
    if isinstance(eager, Step):
        pairs += [
            (a.grad, b.grad) for a, b in zip(fast.network.parameters(), eager.network.parameters(), strict=True) if b.grad is not None
        ]
    worst = max(relative_error(got.detach(), wanted.detach().to(torch.float64)) for got, wanted in pairs)
    return f"its results differ by {worst:.1e}" if worst > 10 * FLOOR[precision] else ""


def _race(sides: dict[str, Forward | Step], inputs: Sequence[Batch], clock: Clock) -> dict[str, float]:
    """Median seconds per call of each side, block by block in turn."""
    calls = {}
    for name, call in sides.items():
        end, n = time.monotonic() + _WARM_S, 0
        while n < 3 or time.monotonic() < end:
            call(inputs[n % len(inputs)])
            n += 1
        calls[name] = max(1, round(clock.block_s / max(clock.time(call, inputs, 0, 2).seconds / 2, 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(_BLOCKS):
        for name, call in sides.items():
            times[name].append(clock.time(call, inputs, i, calls[name]).seconds / calls[name])
    return {name: median(values) for name, values in times.items()}
