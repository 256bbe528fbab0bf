"""What makes the timings of this machine noisy, read from the kernel's files."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

_CPU = Path("/sys/devices/system/cpu")
_WINDOW_S = 0.1
_STEAL_LIMIT = 0.02


def cpu_checks() -> Iterator[tuple[str, bool, str, str]]:
    """(what, is noisy, found, how to fix); what the machine does not show is said and not counted as noise."""
    governor = _read(_CPU / "cpu0/cpufreq/scaling_governor")
    yield "cpu governor", governor not in (None, "performance"), governor or "not readable", "sudo cpupower frequency-set -g performance"
    turbo = _turbo()
    yield "cpu turbo", turbo == "on", turbo or "not readable", "turn it off for timings worth publishing"
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0]
    yield "load", load > 0.5 * cpus, f"{load:.2f} on {cpus} CPUs", "end what else runs before timing"
    steal = _steal()
    if steal is None:
        yield "steal", False, "not readable", ""
    else:
        yield (
            "steal",
            steal > _STEAL_LIMIT,
            f"{100 * steal:.1f} % of {_WINDOW_S:.1f} s",
            "this virtual machine shares its cores; time on one that does not",
        )


def _turbo() -> str | None:
    no_turbo, boost = _read(_CPU / "intel_pstate/no_turbo"), _read(_CPU / "cpufreq/boost")
    if no_turbo is not None:
        return "off" if no_turbo == "1" else "on"
    return None if boost is None else "on" if boost == "1" else "off"


def _steal() -> float | None:
    """Share of the time that the hypervisor gave to others within a short window."""
    before = _cpu_times()
    if before is None:
        return None
    time.sleep(_WINDOW_S)
    after = _cpu_times()
    if after is None:
        return None
    spent: list[int] = [b - a for a, b in zip(before, after, strict=True)]
    return spent[7] / sum(spent) if len(spent) > 7 and any(spent) else 0.0


def _cpu_times() -> list[int] | None:
    text = _read(Path("/proc/stat"))
    return [int(word) for word in text.splitlines()[0].split()[1:9]] if text else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
