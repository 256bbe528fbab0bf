"""What machine and what software a figure comes from. The stable part is hashed; figures of different ids are not compared unasked."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from sparsefleet.measure import machine, nvidia
from sparsefleet.measure.cpus import cpus_allowed
from sparsefleet.trial.spec import digest

NOT_READABLE = "not readable"
ENVIRONMENT_STABLE = (
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
    "CUDA_LAUNCH_BLOCKING",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "SPARSEFLEET_IMAGE_DIGEST",
)
"""Variables that make another machine of this one."""
ENVIRONMENT_FLAGS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "PYTHONHASHSEED",
)
"""Variables that are a setting of one run."""
_PACKAGES = ("torch", "triton", "torch-sparse", "torch-scatter", "numpy", "scipy", "sparsefleet")
_LIBRARIES = ("nvidia-", "mkl", "intel-openmp", "triton", "openblas")
_LONG = 60


def fingerprint() -> dict[str, Any]:
    """``{"id": "fp:…", "stable": {…}, "flags": {…}, "installed": {…}, "now": {…}}`` as JSON values.

    The id is the digest of ``stable`` alone. ``flags`` are a run's own settings (threads, precision), which every timing names itself;
    ``installed`` is a digest of every installed distribution, kept but not hashed, since a test tool more is not another machine and what
    computes is in ``stable`` by name; ``now`` is the moment. Of the environment only the variables of two allow-lists are read.
    """
    stable = {**_hardware(), "software": _software(), "environment": _environment(ENVIRONMENT_STABLE)}
    return {
        "id": f"fp:{digest(stable)[:16]}",
        "stable": stable,
        "flags": {**_flags(), "environment": _environment(ENVIRONMENT_FLAGS)},
        "installed": installed(),
        "now": _now(),
    }


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What differs between two fingerprints, in words: ``cpu model: A against B``; what only one of them knows is said so.

    The stable part first, which decides whether they may be compared, then the flags. The moment is left out.
    """
    found = []
    for part in ("stable", "flags"):
        left, right = (dict(_leaves(side.get(part, {}))) for side in (one, other))
        for path in sorted(left.keys() | right.keys()):
            a, b = left.get(path, "nothing"), right.get(path, "nothing")
            if a != b:
                long = max(len(a), len(b)) > _LONG
                found.append(f"{path}: differs" if long else f"{path}: {a} against {b}")
    return found


def _leaves(value: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return [leaf for key in value for leaf in _leaves(value[key], f"{path} {key}".strip())]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [leaf for index, item in enumerate(value) for leaf in _leaves(item, f"{path} {index}".strip())]
    words = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return [(path.replace("_", " "), words)]


@lru_cache(maxsize=1)
def _hardware() -> dict[str, Any]:
    return {"cpu": _cpu(), "memory_bytes": _memory_bytes(), "gpus": _gpus(), "cgroup": _told(machine.cgroup_limits())}


def _cpu() -> dict[str, Any]:
    model, flags = machine.cpu_model()
    return {
        "model": model or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "logical": os.cpu_count(),
        "allowed": sorted(cpus_allowed()),
        "caches": {f"L{level}": size for level, size in machine.caches().items()},
        "virtual": "hypervisor" in flags,
        "vector": sorted(flag for flag in flags if flag.startswith(("avx", "amx", "sve", "asimd", "fma"))),
        **_told({"smt": machine.smt(), "governor": machine.governor(), "turbo": machine.turbo()}),
    }


def _told(values: dict[str, Any]) -> dict[str, Any]:
    return {name: NOT_READABLE if value is None else value for name, value in values.items()}


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _gpus() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    told = {facts.get("uuid", ""): facts for facts in nvidia.stable_facts()}
    found = []
    for index in range(torch.cuda.device_count()):
        props = torch.cuda.get_device_properties(index)
        uuid = f"GPU-{str(getattr(props, 'uuid', '')).removeprefix('GPU-')}"
        facts = {name.replace(".", "_"): value for name, value in told.get(uuid, {}).items() if name != "uuid"}
        found.append(
            {
                "name": props.name,
                "uuid": uuid,
                "memory_bytes": props.total_memory,
                "capability": [props.major, props.minor],
                "multiprocessors": props.multi_processor_count,
                "nvml": facts or NOT_READABLE,
            }
        )
    return found


@lru_cache(maxsize=1)
def _software() -> dict[str, Any]:
    import torch

    build = torch.__config__.show()
    blas = re.search(r"BLAS_INFO=(\w+)", build)
    return {
        "os": platform.system(),
        "kernel": platform.release(),
        "libc": "-".join(platform.libc_ver()),
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "packages": package_versions(),
        "libraries": {name: version for name, version in distributions() if name.startswith(_LIBRARIES)},
        "torch_build": build,
        "blas": blas[1] if blas else NOT_READABLE,
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


@lru_cache(maxsize=1)
def distributions() -> tuple[tuple[str, str], ...]:
    """(name, version) of every installed distribution, from the names of the metadata folders: opening each takes 100 times as long."""
    found: dict[str, str] = {}
    for folder in dict.fromkeys(sys.path):
        for entry in _listed(Path(folder or ".")):
            stem, _, ending = entry.rpartition(".")
            if ending in ("dist-info", "egg-info") and "-" in stem:
                name, version = stem.split("-")[:2]
                found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), version)  # the first on the path is the one that is imported
    return tuple(sorted(found.items()))


def installed() -> dict[str, Any]:
    """Number and digest of all installed distributions: two equal digests are one environment."""
    listed = "\n".join(f"{name}=={version}" for name, version in distributions())
    return {"packages": len(distributions()), "sha256": hashlib.sha256(listed.encode()).hexdigest()}


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


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


def _environment(allowed: tuple[str, ...]) -> dict[str, str]:
    return {name: os.environ[name] for name in allowed if name in os.environ}


def _now() -> dict[str, Any]:
    steal = machine.steal_since_boot()
    return {
        "load": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else NOT_READABLE,
        "pressure": _told({what: machine.pressure(what) for what in ("cpu", "memory", "io")}),
        "steal_share_since_boot": NOT_READABLE if steal is None else round(steal, 6),
        "nice": os.nice(0) if hasattr(os, "nice") else NOT_READABLE,
        "gpus": nvidia.facts_now() or NOT_READABLE,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
