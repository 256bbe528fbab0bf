"""What makes this machine a bad place to measure, and what to do about it. Reads the kernel's files and NVIDIA's tool; imports no torch.

What the machine does not show is said and does not count as noise.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from sparsefleet.kernels import VARIABLE as OWN_KERNELS
from sparsefleet.measure import machine, nvidia
from sparsefleet.measure.cpus import cpus_allowed

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_PRECISION_VARIABLES = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")
_KERNEL_VARIABLES = (OWN_KERNELS, "ATEN_CPU_CAPABILITY", "MKL_DEBUG_CPU_TYPE", "CUDA_LAUNCH_BLOCKING", "LD_PRELOAD")
_WINDOW_S = 0.15
_STEAL_LIMIT = 0.02
_BUSY_CPUS = 0.1
_PRESSURE_LIMIT = {"cpu": 5.0, "memory": 1.0}
_SWAP_LIMIT = 64 * 2**20
_HELD_BACK = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "heat", 0x40: "heat (hardware)", 0x80: "power brake"}
_UNREADABLE = "not readable"


class Finding(NamedTuple):
    """One thing looked at; ``fix`` matters only if it is noisy."""

    what: str
    is_noisy: bool
    found: str
    fix: str = ""


def cpu_checks() -> Iterator[Finding]:
    """Clocks, neighbours and limits of the CPUs."""
    governor, turbo, smt = machine.governor(), machine.turbo(), machine.smt()
    yield Finding(
        "cpu governor", governor not in (None, "performance"), governor or _UNREADABLE, "sudo cpupower frequency-set -g performance"
    )
    yield Finding(
        "cpu turbo",
        turbo == "on",
        turbo or _UNREADABLE,
        "off for timings worth publishing: echo 1 | sudo tee /sys/devices/system/cpu/intel_pstate/no_turbo, or echo 0 to cpufreq/boost",
    )
    yield Finding(
        "cpu threads", smt == "on", f"SMT {smt or _UNREADABLE}", "time with at most one thread a core, or turn SMT off in the firmware"
    )
    yield from _load()
    yield from _limits()


def _load() -> Iterator[Finding]:
    n_cpus = len(cpus_allowed())
    load = os.getloadavg()[0]
    yield Finding("load", load > 0.5 * n_cpus, f"{load:.2f} on {n_cpus} CPUs", "end what else runs before timing")
    seen = machine.watch(_WINDOW_S)
    busy = [hog for hog in seen.hogs if hog.cpus >= _BUSY_CPUS]
    named = ", ".join(f"{hog.name} ({hog.pid}) {min(hog.cpus, float(n_cpus)):.0%}" for hog in busy[:3])
    more = f" and {len(busy) - 3} more" if len(busy) > 3 else ""
    yield Finding("neighbours", bool(busy), f"{named}{more}" if busy else "no busy process", "end them, or time when they are done")
    yield Finding(
        "steal",
        seen.steal is not None and seen.steal > _STEAL_LIMIT,
        _UNREADABLE if seen.steal is None else f"{seen.steal:.1%} of {seen.seconds:.2f} s",
        "this virtual machine shares its cores; time on one that does not",
    )
    for what, limit in _PRESSURE_LIMIT.items():
        waited = machine.pressure(what)
        yield Finding(
            f"{what} pressure",
            waited is not None and waited > limit,
            _UNREADABLE if waited is None else f"{waited:.1f} % of the last 10 s",
            "processes wait for each other: end what else runs" if what == "cpu" else "memory is short: end what else runs",
        )


def _limits() -> Iterator[Finding]:
    n_cpus, quota = len(cpus_allowed()), machine.cpu_quota()
    yield Finding(
        "cpu quota",
        quota is not None and quota < n_cpus,
        "no limit" if quota is None else f"{quota:g} CPUs' time on {n_cpus} CPUs",
        "all threads stop when it is used up: raise the container's CPU limit, or give it as many CPUs (cpuset) as it may use",
    )
    memory = machine.meminfo()
    swapped = memory.get("SwapTotal", 0) - memory.get("SwapFree", 0)
    yield Finding(
        "swap",
        swapped > _SWAP_LIMIT,
        f"{swapped / 2**20:.0f} MiB in use" if memory else _UNREADABLE,
        "what is swapped out comes back within a round: free memory, then sudo swapoff -a && sudo swapon -a",
    )


def setting_checks(environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Variables that set threads, precision or kernels behind the trial's back."""
    threads = {name: environment[name] for name in THREAD_VARIABLES if name in environment}
    n_cpus, quota = len(cpus_allowed()), machine.cpu_quota()
    room = n_cpus if quota is None else min(n_cpus, max(1, int(quota)))
    too_many = any(value.isdigit() and int(value) > room for value in threads.values())
    yield Finding(
        "threads",
        len(set(threads.values())) > 1 or too_many,
        _listed(threads) or "unset: each trial sets its own",
        f"unset them, or give all the same number, at most {room}",
    )
    precision = {name: environment[name] for name in _PRECISION_VARIABLES if name in environment}
    yield Finding(
        "precision",
        bool(precision),
        _listed(precision) or "no variable overrides it",
        f"unset {' and '.join(precision)}: a trial's spec decides about TF32",
    )
    kernels = {name: environment[name] for name in _KERNEL_VARIABLES if name in environment}
    yield Finding(
        "kernels",
        bool(kernels),
        _listed(kernels) or "no variable chooses them",
        f"unset {' and '.join(kernels)} unless it is what you measure",
    )


def _listed(variables: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in variables.items())


def gpu_checks(tool: str = "nvidia-smi") -> Iterator[Finding]:
    """Per GPU: others that compute on it, a clock that is held back, settings that make it start slowly or smaller."""
    stable = {facts.get("uuid", ""): facts for facts in nvidia.query(nvidia.STABLE, tool)}
    if not stable:
        yield Finding("gpu clocks", False, f"{_UNREADABLE}: nvidia-smi is missing or says nothing")
        return
    processes = nvidia.compute_processes(tool)
    for index, facts in enumerate(nvidia.query(nvidia.NOW, tool)):
        uuid = facts.get("uuid", "")
        here = [f"{pid}" for gpu, pid, _ in processes or () if gpu == uuid]
        yield Finding(
            f"gpu {index} neighbours",
            bool(here),
            _UNREADABLE if processes is None else f"processes {', '.join(here)}" if here else "no other process computes",
            "end them, or hide this GPU from the sweep with CUDA_VISIBLE_DEVICES",
        )
        yield _clock(index, facts)
        yield from _setup(index, stable.get(uuid, {}))


def _clock(index: int, facts: Mapping[str, str]) -> Finding:
    active = facts.get("clocks_throttle_reasons.active", "")
    bits = int(active, 16) if active.startswith("0x") else 0
    why = [word for bit, word in _HELD_BACK.items() if bits & bit]
    told = f"{facts.get('clocks.sm', '?')} MHz, {facts.get('temperature.gpu', '?')} °C"
    return Finding(
        f"gpu {index} clock",
        bool(why),
        f"{told}, held back by {' and '.join(why)}" if why else told,
        "let it cool, or lock it lower: sudo nvidia-smi -lgc MHZ",
    )


def _setup(index: int, facts: Mapping[str, str]) -> Iterator[Finding]:
    persistence, mig = facts.get("persistence_mode", _UNREADABLE), facts.get("mig.mode.current", _UNREADABLE)
    yield Finding(f"gpu {index} persistence", persistence == "Disabled", persistence, "sudo nvidia-smi -pm 1")
    yield Finding(f"gpu {index} MIG", mig == "Enabled", mig, "a slice shares its memory system with the others: time on a whole GPU")
