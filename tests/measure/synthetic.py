"""A clock whose time, noise and neighbours are ours: nothing here depends on the machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sparsefleet.measure.clock import Call, Machine, Reading


class Side:
    """A callable that costs ``seconds`` by the synthetic clock."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name, self.seconds = name, seconds

    def __call__(self, value: Any) -> None:
        raise AssertionError("the synthetic clock owns the time and calls nothing")


Noise = Callable[[np.random.Generator, float], float]


def quiet(rng: np.random.Generator, now: float) -> float:
    return 1.0


def lognormal(sigma: float) -> Noise:
    return lambda rng, now: float(np.exp(sigma * rng.standard_normal()))


class SyntheticClock:
    block_s = 5e-3
    n_cpus = 2
    mhz_rated = None

    def __init__(
        self, noise: Noise = quiet, *, kind: str = "cpu-1", seed: int = 0, hog: Callable[[int], float] = lambda block: 1.0
    ) -> None:
        """``hog(block)`` stretches the wall time of a block, not its CPU time."""
        self.kind, self.noise, self.hog = kind, noise, hog
        self.threads = 1 if kind == "cpu-1" else 2
        self.extra_cpus: dict[str, float] = {}
        self.rng = np.random.default_rng(seed)
        self.now = self.busy = self.own = self.steal = 0.0
        self.steal_rate = self.foreign_rate = 0.0
        self.block = 0
        self.asked: list[tuple[str, int, int]] = []

    def time(self, call: Call, inputs: Sequence[Any], first: int, calls: int) -> Reading:
        assert isinstance(call, Side)
        self.asked.append((call.name, first % len(inputs), calls))
        cpu = calls * call.seconds * self.noise(self.rng, self.now)
        wall = cpu * self.hog(self.block)
        self.block += 1
        self.now += wall
        self.own += cpu
        self.busy += cpu + self.foreign_rate * wall
        self.steal += self.steal_rate * wall
        return Reading(wall, cpu, process_s=cpu + self.extra_cpus.get(call.name, 0.0) * wall)

    def machine(self) -> Machine | None:
        return Machine(self.now, self.own, self.busy, self.steal)


class CountingClock:
    """Runs what it is given and says that every call took as long as ``cost`` has it, whatever else this machine does."""

    kind, block_s, n_cpus, threads, mhz_rated = "cpu-1", 5e-3, 2, 1, None

    def __init__(self, cost: Callable[[Call], float] = lambda call: 1e-3) -> None:
        self.cost = cost

    def time(self, call: Call, inputs: Sequence[Any], first: int, calls: int) -> Reading:
        for i in range(calls):
            call(inputs[(first + i) % len(inputs)])
        seconds = calls * self.cost(call)
        return Reading(seconds, seconds, process_s=seconds)

    def machine(self) -> Machine | None:
        return None
