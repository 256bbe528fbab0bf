"""What the kernel's files say of this machine: cheap to ask, no torch. ``None`` means that the machine does not show it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

CPU = Path("/sys/devices/system/cpu")
PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Hog:
    """A process of others and the CPU time it took within a window.

    Attributes:
        cpus: CPUs' worth of time: 1.0 is one core kept busy.
    """

    pid: int
    name: str
    cpus: float


@dataclass(frozen=True)
class Window:
    """What happened on this machine within ``seconds``.

    Attributes:
        steal: share of the CPU time that the hypervisor gave to others.
        hogs: processes other than this one and its ancestors, busiest first.
    """

    seconds: float
    steal: float | None
    hogs: tuple[Hog, ...]


def text(path: Path) -> str | None:
    """The file's stripped text."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def lines(path: Path) -> list[str]:
    """The file's lines; none if it cannot be read."""
    return (text(path) or "").splitlines()


def governor() -> str | None:
    """The frequency governor of the first CPU."""
    return text(CPU / "cpu0/cpufreq/scaling_governor")


def turbo() -> str | None:
    """``on`` or ``off``."""
    no_turbo, boost = text(CPU / "intel_pstate/no_turbo"), text(CPU / "cpufreq/boost")
    if no_turbo is not None:
        return "off" if no_turbo == "1" else "on"
    return None if boost is None else "on" if boost == "1" else "off"


def smt() -> str | None:
    """``on`` or ``off``: whether two hardware threads share a core."""
    active = text(CPU / "smt/active")
    return None if active is None else "on" if active == "1" else "off"


def cgroup_limits() -> dict[str, str | None]:
    """The container's limits as the kernel writes them, of version 2 or 1."""
    return {
        "cpu_max": text(CGROUP / "cpu.max") or _quota_v1(),
        "cpus": text(CGROUP / "cpuset.cpus.effective") or text(CGROUP / "cpuset/cpuset.effective_cpus"),
        "memory_max": text(CGROUP / "memory.max") or text(CGROUP / "memory/memory.limit_in_bytes"),
    }


def _quota_v1() -> str | None:
    quota, period = (text(CGROUP / f"cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
    return None if quota is None or period is None else f"{'max' if int(quota) < 0 else quota} {period}"


def cpu_quota() -> float | None:
    """CPUs' worth of time that the container may use; None without a limit."""
    quota, _, period = (cgroup_limits()["cpu_max"] or "").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def pressure(what: str) -> float | None:
    """Per cent of the last ten seconds in which some process waited for ``cpu``, ``memory`` or ``io``."""
    for line in lines(PROC / "pressure" / what):
        kind, *fields = line.split()
        if kind == "some":
            return float(dict(field.split("=") for field in fields)["avg10"])
    return None


def meminfo() -> dict[str, int]:
    """Bytes by name, as ``/proc/meminfo`` has them."""
    found = [line.replace(":", " ").split() for line in lines(PROC / "meminfo")]
    return {words[0]: int(words[1]) * 1024 for words in found if len(words) == 3}


def memory_free() -> int | None:
    """Bytes that could be allocated now: what the machine has left, or the container if that is less; None where neither shows it."""
    found = [meminfo().get("MemAvailable"), _cgroup_free()]
    return min((n for n in found if n is not None), default=None)


def _cgroup_free() -> int | None:
    """What the container's limit leaves; files that the kernel keeps only because nobody wanted the memory count as free."""
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        most, now = text(CGROUP / limit), text(CGROUP / used)
        if most and now and most.isdigit() and now.isdigit():
            stat = dict(line.split() for line in lines((CGROUP / used).with_name("memory.stat")))
            return max(0, int(most) - int(now) + int(stat.get(cache, 0)))
    return None


def watch(seconds: float = 0.1) -> Window:
    """What the machine does in the next ``seconds``."""
    before, cpu_before, start = _spent(), _cpu_ticks(), time.perf_counter()
    time.sleep(seconds)
    after, cpu_after, took = _spent(), _cpu_ticks(), time.perf_counter() - start
    per_tick = 1.0 / os.sysconf("SC_CLK_TCK") / took if hasattr(os, "sysconf") else 0.0
    hogs = [
        Hog(pid, name, round((ticks - before[pid][1]) * per_tick, 2))
        for pid, (name, ticks) in after.items()
        if pid in before and ticks > before[pid][1] and pid not in _lineage()
    ]
    return Window(took, _steal(cpu_before, cpu_after), tuple(sorted(hogs, key=lambda hog: -hog.cpus)))


def _cpu_ticks() -> list[int]:
    first = next(iter(lines(PROC / "stat")), "")
    return [int(word) for word in first.split()[1:9]]


def _steal(before: list[int], after: list[int]) -> float | None:
    spent = [b - a for a, b in zip(before, after, strict=True)]
    if len(spent) < 8:
        return None
    return spent[7] / sum(spent) if any(spent) else 0.0


def steal_since_boot() -> float | None:
    """Share of the CPU time that the hypervisor gave to others since boot."""
    ticks = _cpu_ticks()
    return ticks[7] / sum(ticks) if len(ticks) == 8 and any(ticks) else None


def _spent() -> dict[int, tuple[str, int]]:
    """Name and CPU ticks of every process that this one may see."""
    found = {}
    for folder in PROC.iterdir() if PROC.is_dir() else ():
        if folder.name.isdigit() and (stat := text(folder / "stat")):  # one may end between the listing and the reading
            head, _, tail = stat.rpartition(")")
            fields = tail.split()
            found[int(folder.name)] = head.partition("(")[2], int(fields[11]) + int(fields[12])
    return found


def _lineage() -> set[int]:
    """This process and its ancestors: a shell or a test runner that waits for it is no foreign load."""
    found, pid = set(), os.getpid()
    while pid > 0 and pid not in found:
        found.add(pid)
        _, _, tail = (text(PROC / str(pid) / "stat") or "").rpartition(")")
        pid = int(tail.split()[1]) if tail else 0
    return found


def cpu_model() -> tuple[str, frozenset[str]]:
    """Name and feature flags of the first CPU; empty where the machine does not say."""
    info: dict[str, str] = {}
    for line in lines(PROC / "cpuinfo"):
        name, _, value = line.partition(":")
        info.setdefault(name.strip(), value.strip())
    return info.get("model name", ""), frozenset(info.get("flags", info.get("Features", "")).split())


def caches() -> dict[int, int]:
    """Bytes of the first CPU's data caches by level."""
    found: dict[int, int] = {}
    for folder in sorted((CPU / "cpu0/cache").glob("index*")):
        level, kind, size = (text(folder / name) or "" for name in ("level", "type", "size"))
        if kind != "Instruction" and level.isdigit() and size[:-1].isdigit():
            found[int(level)] = int(size[:-1]) * {"K": 2**10, "M": 2**20}.get(size[-1], 1)
    return found
