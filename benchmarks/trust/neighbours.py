"""Other work on the machine, really running, and how much of it there was."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sparsefleet.measure.clock import read_machine
from sparsefleet.measure.cpus import cpus_allowed

_LIVES = "import os, random, sys, time\nwhile os.getppid() == int(sys.argv[1]):\n"
HOG = _LIVES + "    sum(range(100_000))\n"
BURST = _LIVES + (
    "    end = time.time() + random.uniform(0.1, 1.0)\n    while time.time() < end: sum(range(10_000))\n    time.sleep(random.uniform(0.1, 1.0))\n"
)
"""A neighbour ends with the process that started it, however that ends."""
LOADS = {"quiet": (), "bursts": (BURST,), "hogs": (HOG, HOG)}


@dataclass
class Foreign:
    """CPUs that others used, on average over the time of ``neighbours``; None where the system does not say."""

    cpus: float | None = None

    def __str__(self) -> str:
        return "" if self.cpus is None else f"others used {self.cpus:.2f} CPUs"


@contextmanager
def neighbours(load: str) -> Iterator[Foreign]:
    """Runs the neighbours of ``LOADS[load]`` meanwhile; tells afterwards what others used."""
    running = [subprocess.Popen([sys.executable, "-c", code, str(os.getpid())], stdin=subprocess.DEVNULL) for code in LOADS[load]]
    found, cpus = Foreign(), cpus_allowed()
    before, own = read_machine(cpus), _children_s()
    try:
        yield found
    finally:
        after = read_machine(cpus)
        if before and after:
            ours = after.own_s - before.own_s + _children_s() - own
            found.cpus = max(0.0, after.busy_s + after.steal_s - before.busy_s - before.steal_s - ours) / (after.wall_s - before.wall_s)
        for process in running:
            process.kill()
            process.wait()


def _children_s() -> float:
    """CPU seconds of children that have ended."""
    times = os.times()
    return times.children_user + times.children_system
