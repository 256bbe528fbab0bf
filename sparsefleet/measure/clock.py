"""Clocks: what one block of calls took, and what the machine was doing meanwhile. A test injects its own."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sparsefleet.measure.cpus import cpus_allowed

Call = Callable[[Any], object]
_PROC_STAT = Path("/proc/stat")


@dataclass(frozen=True)
class Reading:
    """One block.

    Attributes:
        seconds: the whole block.
        cpu_s: CPU time of the calling thread (one thread) or of the process (several); None where it says nothing (GPU).
        process_s: CPU time of the whole process: more than ``seconds * threads`` if the call uses threads of its own.
        mhz: the GPU's SM clock right after the block; None if not readable.
    """

    seconds: float
    cpu_s: float | None = None
    mhz: float | None = None
    process_s: float | None = None


@dataclass(frozen=True)
class Machine:
    """Counters since boot, in seconds, over the CPUs that this process may use; differences of two of them cover a window."""

    wall_s: float
    own_s: float
    busy_s: float
    steal_s: float


class Clock(Protocol):
    """Owns the time; the code under test never does."""

    kind: str
    """``cpu-1``, ``cpu-n`` or ``cuda``: which contention filter applies."""
    block_s: float
    """The least length of a block."""
    n_cpus: int
    threads: int
    mhz_rated: float | None
    """The SM clock that the GPU is set to run at; None for a CPU, or where it cannot be read."""

    def time(self, call: Call, inputs: Sequence[Any], first: int, calls: int) -> Reading:
        """One block: ``call(inputs[(first + i) % len(inputs)])`` for i below ``calls``."""

    def machine(self) -> Machine | None:
        """The machine's counters now, or None where the system has none."""


class CpuClock:
    """Wall time, with the CPU time that tells whether the thread was kept from running."""

    block_s = 5e-3
    mhz_rated: float | None = None

    def __init__(self, threads: int) -> None:
        self.kind = "cpu-1" if threads == 1 else "cpu-n"
        self.threads = threads
        self._cpu_time = time.thread_time if threads == 1 else time.process_time
        self._cpus = cpus_allowed()
        self.n_cpus = len(self._cpus)

    def time(self, call: Call, inputs: Sequence[Any], first: int, calls: int) -> Reading:
        """See ``Clock.time``."""
        turn = [inputs[(first + i) % len(inputs)] for i in range(calls)]
        process = time.process_time()
        cpu = self._cpu_time()
        start = time.perf_counter()
        for value in turn:
            call(value)
        seconds = time.perf_counter() - start
        return Reading(seconds, self._cpu_time() - cpu, process_s=time.process_time() - process)

    def machine(self) -> Machine | None:
        """See ``Clock.machine``."""
        return read_machine(self._cpus)


class CudaClock:
    """Time between two events on the current stream, so that the host's noise stays out."""

    kind = "cuda"
    block_s = 1e-3

    def __init__(self, device: str) -> None:
        import torch

        from sparsefleet.measure.gpu import rated_mhz

        self._device = torch.device(device)
        self.mhz_rated: float | None = rated_mhz(device)
        self.threads = torch.get_num_threads()
        self.n_cpus = len(cpus_allowed())

    def time(self, call: Call, inputs: Sequence[Any], first: int, calls: int) -> Reading:
        """See ``Clock.time``."""
        import torch

        turn = [inputs[(first + i) % len(inputs)] for i in range(calls)]
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(self._device)
        start.record()
        for value in turn:
            call(value)
        end.record()
        torch.cuda.synchronize(self._device)
        return Reading(start.elapsed_time(end) / 1e3, mhz=self._mhz())

    def machine(self) -> Machine | None:
        """The CPUs say nothing of a GPU."""
        return None

    def _mhz(self) -> float | None:
        import torch

        try:
            return float(torch.cuda.clock_rate(self._device))
        except (ImportError, RuntimeError, AttributeError):  # NVML's Python package is optional
            return None


def clock_for(device: str, threads: int | None = None) -> Clock:
    """The clock for ``cpu`` or ``cuda[:n]``; ``threads`` defaults to torch's intra-op threads if torch is loaded, else 1."""
    if device.startswith("cuda"):
        return CudaClock(device)
    if threads is None:
        torch = sys.modules.get("torch")
        threads = torch.get_num_threads() if torch else 1
    return CpuClock(threads)


def read_machine(cpus: frozenset[int]) -> Machine | None:
    """Counters over ``cpus`` from ``/proc/stat``, or None where there is none."""
    try:
        lines = _PROC_STAT.read_text().splitlines()
    except OSError:
        return None
    busy = steal = 0
    for line in lines:
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cpus:
            ticks = [int(field) for field in fields]
            user, nice, system, _idle, _iowait, irq, softirq, stolen = (ticks + [0] * 8)[:8]
            busy += user + nice + system + irq + softirq
            steal += stolen
    return Machine(time.perf_counter(), time.process_time(), busy * tick_s(), steal * tick_s())


def tick_s() -> float:
    """Resolution of the machine's counters in seconds."""
    return 1.0 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01
