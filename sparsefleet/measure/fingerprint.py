"""What machine and what software a figure comes from. The stable part is hashed; figures of different ids are not compared unasked."""

from __future__ import annotations

import os
import platform
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from sparsefleet.measure.cpus import cpus_allowed
from sparsefleet.trial.spec import digest

NOT_READABLE = "not readable"
ENVIRONMENT_ALLOWED = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "GOMP_SPINCOUNT",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "MKL_DEBUG_CPU_TYPE",
    "MALLOC_ARENA_MAX",
    "LD_PRELOAD",
    "ATEN_CPU_CAPABILITY",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_LAUNCH_BLOCKING",
    "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "PYTHONHASHSEED",
    "SPARSEFLEET_IMAGE_DIGEST",
)
_SYS_CPU = Path("/sys/devices/system/cpu")
_PACKAGES = ("torch", "triton", "torch-sparse", "torch-scatter", "numpy", "scipy", "sparsefleet")


def fingerprint() -> dict[str, Any]:
    """``{"id": "fp:…", "stable": {…}, "now": {…}}`` as JSON values; the id is the digest of ``stable`` and says nothing of the moment.

    Of the environment only the variables of an allow-list are read.
    """
    stable = {**_hardware(), "software": _software(), "flags": _flags(), "environment": _environment()}
    return {"id": f"fp:{digest(stable)[:16]}", "stable": stable, "now": _now()}


@lru_cache(maxsize=1)
def _hardware() -> dict[str, Any]:
    return {"cpu": _cpu(), "memory_bytes": _memory_bytes(), "gpus": _gpus()}


def _cpu() -> dict[str, Any]:
    info: dict[str, str] = {}
    for line in _lines(Path("/proc/cpuinfo")):
        name, _, value = line.partition(":")
        info.setdefault(name.strip(), value.strip())
    flags = set(info.get("flags", info.get("Features", "")).split())
    return {
        "model": info.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "logical": os.cpu_count(),
        "allowed": sorted(cpus_allowed()),
        "smt": _text(_SYS_CPU / "smt/active"),
        "governor": _text(_SYS_CPU / "cpu0/cpufreq/scaling_governor"),
        "turbo_off": _text(_SYS_CPU / "intel_pstate/no_turbo"),
        "boost": _text(_SYS_CPU / "cpufreq/boost"),
        "virtual": "hypervisor" in flags,
        "vector": sorted(flag for flag in flags if flag.startswith(("avx", "amx", "sve", "asimd", "fma"))),
        "cgroup_cpu_max": _text(Path("/sys/fs/cgroup/cpu.max")),
        "cgroup_cpus": _text(Path("/sys/fs/cgroup/cpuset.cpus.effective")),
    }


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _gpus() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        props = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": props.name,
                "uuid": str(getattr(props, "uuid", NOT_READABLE)),
                "memory_bytes": props.total_memory,
                "capability": [props.major, props.minor],
                "multiprocessors": props.multi_processor_count,
            }
        )
    return found


@lru_cache(maxsize=1)
def _software() -> dict[str, Any]:
    import torch

    return {
        "os": platform.system(),
        "kernel": platform.release(),
        "libc": "-".join(platform.libc_ver()),
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "packages": package_versions(),
        "torch_build": torch.__config__.show(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mkl": torch.backends.mkl.is_available(),  # type: ignore[no-untyped-call]
        "openmp": torch.backends.openmp.is_available(),  # type: ignore[no-untyped-call]
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,  # type: ignore[no-untyped-call]
    }


@lru_cache(maxsize=1)
def package_versions() -> dict[str, str | None]:
    """Installed versions of what computes; looked up once, since reading the metadata takes longer than a small trial's step."""
    return {name: _version(name) for name in _PACKAGES}


def _flags() -> dict[str, Any]:
    import torch

    return {
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cuda_matmul_tf32": torch.get_float32_matmul_precision() != "highest",
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "default_dtype": str(torch.get_default_dtype()),
    }


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in ENVIRONMENT_ALLOWED if name in os.environ}


def _now() -> dict[str, Any]:
    return {
        "load": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else NOT_READABLE,
        "pressure_cpu": _text(Path("/proc/pressure/cpu")),
        "pressure_memory": _text(Path("/proc/pressure/memory")),
        "steal_share_since_boot": _steal_share(),
        "nice": os.nice(0) if hasattr(os, "nice") else NOT_READABLE,
    }


def _steal_share() -> float | str:
    first = next(iter(_lines(Path("/proc/stat"))), "")
    ticks = [int(field) for field in first.split()[1:9]]
    total = float(sum(ticks))
    return round(ticks[7] / total, 6) if len(ticks) == 8 and total else NOT_READABLE


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return NOT_READABLE


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
