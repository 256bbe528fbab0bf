"""Which storage is fastest for a layer: measured once on this machine, remembered in the cache folder, and told."""

from __future__ import annotations

import hashlib
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

import sparsefleet
from sparsefleet.home import cache_dir, write_private
from sparsefleet.ops import engine

_ROUNDS, _LEAST_ROUNDS, _BUDGET_S = 15, 5, 1.0
_BLOCK_S = 0.005
_TIE = 0.03
_MOST_DENSE_BYTES = 1 << 30
FOLDER = "auto"
_TOLD: set[Path] = set()
"""Remembered choices that this process has told already."""


@dataclass(frozen=True)
class Setting:
    """What a choice holds for."""

    shape: tuple[int, int]
    density: float
    batch_size: int
    dtype: str
    device: str
    threads: int
    constant_fan_in: bool

    def __str__(self) -> str:
        threads = f", {self.threads} threads" if self.device == "cpu" else ""
        return (
            f"{self.shape[0]} x {self.shape[1]}, density {self.density:g}, batch {self.batch_size}, {self.dtype} on {self.device}{threads}"
        )


@dataclass(frozen=True)
class Choice:
    """The fastest storage.

    Attributes:
        name: of the layer.
        seconds: median of a forward and backward pass, by layer.
        left_out: layers that did not run, and why.
    """

    name: str
    seconds: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        by_time = sorted(self.seconds.items(), key=lambda item: item[1])
        times = ", ".join(f"{name} {1e3 * s:.3g} ms" for name, s in by_time)
        return "; ".join([times or "the only one", *(f"no {name}: {why}" for name, why in self.left_out.items())])


def choose(
    setting: Setting,
    candidates: Mapping[str, Callable[[], nn.Module]],
    left_out: Mapping[str, str],
    lease: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Choice:
    """The fastest of ``candidates`` by a forward and backward pass; the first one where others are not faster by 3 %.

    The result is kept in ``auto`` in the cache folder, under everything that it depends on, and written to standard error with its times.

    Args:
        candidates: makes each layer; in the order of preference.
        left_out: layers that cannot take part, and why.
        lease: held while it is measured.
    """
    path = _path(setting, list(candidates))
    choice = _remembered(path)
    told = "remembered"
    if choice is None:
        with lease():
            choice, told = _race(setting, candidates, dict(left_out)), "measured now"
        _remember(path, setting, choice)
    if told == "measured now" or path not in _TOLD:
        _TOLD.add(path)
        sys.stderr.write(f"auto: {choice.name} for {setting} ({told}: {choice})\n")
    return choice


def dense_is_too_large(shape: tuple[int, int]) -> str:
    """Why a dense-stored weight does not take part in a race, or nothing."""
    n_bytes = 4 * 4 * shape[0] * shape[1]  # weight, masked product, gradient, mask and more
    return f"it would take {n_bytes / 2**30:.1f} GiB" if n_bytes > _MOST_DENSE_BYTES else ""


def _race(setting: Setting, candidates: Mapping[str, Callable[[], nn.Module]], left_out: dict[str, str]) -> Choice:
    if len(candidates) == 1:
        return Choice(next(iter(candidates)), left_out=left_out)
    modules = {name: make() for name, make in candidates.items()}
    dtype = getattr(torch, setting.dtype)
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(setting.batch_size, setting.shape[1], generator=gen).to(setting.device, dtype).requires_grad_()
    up = torch.randn(setting.batch_size, setting.shape[0], generator=gen).to(setting.device, dtype)
    calls = {name: max(1, round(_BLOCK_S / max(_timed(module, x, up, 2), 1e-9))) for name, module in modules.items()}
    times: dict[str, list[float]] = {name: [] for name in modules}
    begun = time.perf_counter()
    for i in range(_ROUNDS):
        if i >= _LEAST_ROUNDS and time.perf_counter() - begun > _BUDGET_S:
            break
        for name in list(modules)[:: 1 if i % 2 else -1]:  # neighbours disturb all alike
            times[name].append(_timed(modules[name], x, up, calls[name]))
    seconds = {name: statistics.median(taken) for name, taken in times.items()}
    return Choice(preferred(seconds), seconds, left_out)


def preferred(seconds: Mapping[str, float]) -> str:
    """The fastest; an earlier one where that is not faster by 3 %."""
    fastest = min(seconds.values())
    return next(name for name, s in seconds.items() if s <= fastest * (1 + _TIE))


def _timed(module: nn.Module, x: Tensor, up: Tensor, calls: int) -> float:
    """Seconds of one forward and backward pass, mean of ``calls``."""
    _synchronise(x)
    start = time.perf_counter()
    for _ in range(calls):
        x.grad = None
        module.zero_grad(set_to_none=True)
        with torch.enable_grad():
            module(x).backward(up)
    _synchronise(x)
    return (time.perf_counter() - start) / calls


def _synchronise(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)


def _path(setting: Setting, names: list[str]) -> Path:
    on = {
        "setting": asdict(setting),
        "candidates": names,
        "machine": _machine(setting.device),
        "torch": torch.__version__,
        "sparsefleet": sparsefleet.__version__,
        "engine": engine(setting.device).name,
    }
    return cache_dir() / FOLDER / f"{hashlib.sha256(json.dumps(on, sort_keys=True).encode()).hexdigest()[:24]}.json"


def _machine(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{platform.machine()} {model}"


def _remembered(path: Path) -> Choice | None:
    try:
        return Choice(**json.loads(path.read_text())["choice"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or damaged: measured again
        return None


def _remember(path: Path, setting: Setting, choice: Choice) -> None:
    path.parent.mkdir(exist_ok=True, mode=0o700)
    write_private(path, json.dumps({"setting": asdict(setting), "choice": asdict(choice)}, indent=1))
