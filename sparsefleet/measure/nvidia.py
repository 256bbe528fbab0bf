"""What NVIDIA's own tool says of the GPUs. It reads NVML, needs no Python package, and never starts a CUDA context."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import lru_cache

STABLE = (
    "uuid",
    "driver_version",
    "power.limit",
    "ecc.mode.current",
    "mig.mode.current",
    "compute_mode",
    "persistence_mode",
    "clocks.max.sm",
    "clocks.max.memory",
    "clocks.applications.graphics",
)
NOW = ("uuid", "temperature.gpu", "clocks.sm", "clocks.mem", "power.draw", "clocks_throttle_reasons.active", "utilization.gpu")
_TIMEOUT_S = 5.0
_UNKNOWN_FIELD = re.compile(r'Field "([^"]+)" is not a valid field')


def stable_facts() -> list[dict[str, str]]:
    """Per GPU, what does not change by itself; empty where the tool is missing or fails."""
    return [dict(facts) for facts in _stable_facts()]


@lru_cache(maxsize=1)
def _stable_facts() -> tuple[dict[str, str], ...]:
    return tuple(query(STABLE))


def facts_now() -> list[dict[str, str]]:
    """Per GPU, temperature, clocks, power and why the clock is held back."""
    return query(NOW)


def query(fields: tuple[str, ...], tool: str = "nvidia-smi") -> list[dict[str, str]]:
    """One dictionary a GPU; a field that this driver does not know is left out."""
    asked = list(fields)
    while asked:
        code, output = _ask(tool, f"--query-gpu={','.join(asked)}")
        if code == 0:
            return [
                dict(zip(asked, (cell.strip() for cell in line.split(",")), strict=True)) for line in output.splitlines() if line.strip()
            ]
        unknown = _UNKNOWN_FIELD.search(output)
        if unknown is None or unknown[1] not in asked:
            return []
        asked.remove(unknown[1])
    return []


def compute_processes(tool: str = "nvidia-smi") -> list[tuple[str, int, int | None]] | None:
    """(GPU uuid, pid, bytes) of every process that computes on a GPU; bytes None where the driver hides them. None: not readable."""
    code, output = _ask(tool, "--query-compute-apps=gpu_uuid,pid,used_memory")
    if code != 0:
        return None
    found = []
    for line in output.splitlines():
        uuid, pid, mib = (cell.strip() for cell in line.split(","))
        found.append((uuid, int(pid), int(mib) * 2**20 if mib.isdigit() else None))
    return found


def _ask(tool: str, what: str) -> tuple[int, str]:
    path = shutil.which(tool)
    if path is None:
        return 127, ""
    try:
        done = subprocess.run(
            [path, what, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 1, ""
    return done.returncode, done.stdout + (done.stderr if done.returncode else "")
