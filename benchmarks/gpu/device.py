"""Whether there is a GPU for this suite, and calls on it that are recorded once and timed as one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import ceil
from statistics import median

import torch

from benchmarks.figures import NotRun
from sparsefleet.measure.clock import Clock
from sparsefleet.measure.graph import recorded
from sparsefleet.ops.triton_linear import available

DEVICE = "cuda"
_BLOCKS, _WARM_UP = 30, 5


def why_not() -> str | None:
    """Why this suite cannot run here; None if it can."""
    if not torch.cuda.is_available():
        return "no CUDA device is here (torch finds none)"
    return available(DEVICE)


def require() -> None:
    """Raises ``NotRun`` where the suite cannot run."""
    reason = why_not()
    if reason is not None:
        raise NotRun(reason)


class Calls:
    """The calls with input 0 to n - 1 as one: on a GPU recorded, so that the host's time does not count; bare where that cannot be.

    Attributes:
        run: all of them, once.
        n: how many they are.
        is_recorded: whether ``run`` replays.
    """

    def __init__(self, call: Callable[[int], object], n: int, device: str) -> None:
        calls = [partial(call, i) for i in range(n)]
        replay = recorded(calls, torch.device(device)) if device != "cpu" else None

        def bare() -> None:
            for one in calls:
                one()

        self.n, self.is_recorded = n, replay is not None
        self.run: Callable[[], None] = replay or bare

    def ms(self, clock: Clock) -> float:
        """Milliseconds of one of the n calls: the median of some blocks."""

        def block(k: int) -> float:
            return clock.time(lambda _: self.run(), [None], 0, k).seconds / k

        once = min(block(1) for _ in range(_WARM_UP))
        k = max(1, ceil(clock.block_s / max(once, 1e-9)))
        return 1e3 * median(block(k) for _ in range(_BLOCKS)) / self.n
