"""The state of the process that all code shares: what it is, what a plugin changed of it, and how to put it back."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sparsefleet.testing import patches


@dataclass(frozen=True)
class _Fact:
    """One piece of shared state.

    Attributes:
        by_libraries: importing a library may change it, which is not the doing of the plugin that imports it first.
    """

    what: str
    read: Callable[[], Any]
    write: Callable[[Any], None]
    mend: str
    by_libraries: bool = False


def _device(device: torch.device) -> None:
    torch.set_default_device(None if device == torch.device("cpu") else device)


def _deterministic(flags: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(flags[0], warn_only=flags[1])


_CUDNN = ("enabled", "benchmark", "deterministic", "allow_tf32")


def _cudnn(flags: tuple[bool, ...]) -> None:
    for name, value in zip(_CUDNN, flags, strict=True):
        setattr(torch.backends.cudnn, name, value)


_inference: list[Any] = []  # the mode ends when its object dies


def _set_inference(on: bool) -> None:
    mode = torch.inference_mode(on)
    mode.__enter__()
    _inference[:] = [mode]


def _environment(wanted: dict[str, str]) -> None:
    for key in os.environ.keys() - wanted.keys():
        del os.environ[key]
    os.environ.update(wanted)


def _path(wanted: list[str]) -> None:
    sys.path[:] = wanted


def _filters(wanted: list[Any]) -> None:
    warnings.filters[:] = wanted  # type: ignore[index]
    forget = getattr(warnings, "_filters_mutated", None)  # what was decided by the other filters
    if forget is not None:
        forget()


def _handlers() -> dict[str, Any]:
    return {number.name: signal.getsignal(number) for number in signal.Signals}


def _set_handlers(wanted: dict[str, Any]) -> None:
    for name, handler in wanted.items():
        number = signal.Signals[name]
        if signal.getsignal(number) is not handler and threading.current_thread() is threading.main_thread():
            signal.signal(number, handler)


def _logging() -> tuple[int, tuple[Any, ...]]:
    return logging.root.level, tuple(logging.root.handlers)


def _set_logging(wanted: tuple[int, tuple[Any, ...]]) -> None:
    logging.root.level, logging.root.handlers[:] = wanted[0], list(wanted[1])


def _numpy_errors() -> dict[str, str]:
    numpy = sys.modules.get("numpy")
    return dict(numpy.geterr()) if numpy else {}


def _set_numpy_errors(wanted: dict[str, str]) -> None:
    numpy = sys.modules.get("numpy")
    if numpy and wanted:
        numpy.seterr(**wanted)


_STREAM = "print to sys.stderr, or use contextlib.redirect_stdout around the call that prints"
_FACTS = (
    _Fact("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype, "name the dtype of each tensor: dtype=..."),
    _Fact("torch's default device", torch.get_default_device, _device, "name the device of each tensor: device=x.device"),
    _Fact("gradients being recorded", torch.is_grad_enabled, torch._C._set_grad_enabled, "use with torch.no_grad(): around the lines"),
    _Fact("torch's inference mode", torch.is_inference_mode_enabled, _set_inference, "use with torch.inference_mode(): around the lines"),
    _Fact(
        "torch's deterministic algorithms (on, warning only)",
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        _deterministic,
        "leave the choice to the user",
    ),
    _Fact("torch's number of threads", torch.get_num_threads, torch.set_num_threads, "leave it: timings are compared at the user's number"),
    _Fact(
        "torch's float32 matmul precision",
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
        "leave it: the dense twin is timed in the same process",
    ),
    _Fact(
        f"torch.backends.cudnn ({', '.join(_CUDNN)})",
        lambda: tuple(getattr(torch.backends.cudnn, name) for name in _CUDNN),
        _cudnn,
        "use with torch.backends.cudnn.flags(...): around the lines",
    ),
    _Fact(
        "autograd's anomaly mode",
        torch.is_anomaly_enabled,
        torch.set_anomaly_enabled,
        "use with torch.autograd.detect_anomaly(): around the lines",
    ),
    _Fact("the working folder", os.getcwd, os.chdir, "use absolute paths"),
    _Fact("os.environ", lambda: dict(os.environ), _environment, "pass settings as hyper-parameters", by_libraries=True),
    _Fact("sys.path", lambda: list(sys.path), _path, "make the module part of your package", by_libraries=True),
    _Fact("sys.stdout", lambda: sys.stdout, lambda value: setattr(sys, "stdout", value), _STREAM),
    _Fact("sys.stderr", lambda: sys.stderr, lambda value: setattr(sys, "stderr", value), _STREAM),
    _Fact(
        "the warnings filters",
        lambda: list(warnings.filters),
        _filters,
        "use with warnings.catch_warnings(): around the lines",
        by_libraries=True,
    ),
    _Fact("Python's recursion limit", sys.getrecursionlimit, sys.setrecursionlimit, "write a loop", by_libraries=True),
    _Fact("garbage collection being on", gc.isenabled, lambda on: gc.enable() if on else gc.disable(), "leave it on"),
    _Fact("the signal handlers", _handlers, _set_handlers, "leave signals to the program that runs the plugin", by_libraries=True),
    _Fact("the root logger", _logging, _set_logging, "use logging.getLogger(__name__)", by_libraries=True),
    _Fact("numpy's reaction to errors", _numpy_errors, _set_numpy_errors, "use with numpy.errstate(...): around the lines"),
)


@dataclass(frozen=True)
class Change:
    """What was changed: ``what`` should have stayed, ``got`` tells how it is now."""

    what: str
    got: str
    mend: str


class Surroundings:
    """Shared state as it is at this moment.

    Not part of it: the global generators, which the checks themselves disturb (``Generators``).
    """

    def __init__(self) -> None:
        self._values = {fact: fact.read() for fact in _FACTS}
        self._patches = patches.Patches()
        self._modules = set(sys.modules)

    def changes(self, own: str) -> list[Change]:
        """What is different now.

        Args:
            own: top-level name of the plugin's package; imports of other modules excuse what importing a library may change.
        """
        imported = {name.partition(".")[0] for name in set(sys.modules) - self._modules}
        excused = bool(imported - {own})
        found = [
            Change(fact.what, _difference(before, now), fact.mend)
            for fact, before in self._values.items()
            if not (excused and fact.by_libraries)
            for now in [fact.read()]
            if now is not before and now != before
        ]
        return found + [Change(name, "another object", "call what you need, never replace it") for name in self._patches.changed()]

    def restore(self) -> None:
        """Puts everything back."""
        for fact, before in self._values.items():
            now = fact.read()
            if now is not before and now != before:
                fact.write(before)
        self._patches.restore()


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, dict):
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return "; ".join(f"{key}: {_at(now, key)} (was {_at(before, key)})" for key in keys)
    if isinstance(before, list):
        parts = (("added", [x for x in now if x not in before]), ("removed", [x for x in before if x not in now]))
        told = "; ".join(f"{word} {', '.join(map(_short, items))}" for word, items in parts if items)
        return told or "the same entries in another order"
    return f"{_short(now)} (was {_short(before)})"


def _at(values: dict[str, Any], key: str) -> str:
    return _short(values[key]) if key in values else "unset"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class Generators:
    """The global random generators of ``random``, numpy and torch, as they stand at this moment."""

    def __init__(self) -> None:
        self._states = self._read()

    @staticmethod
    def _read() -> dict[str, Any]:
        states: dict[str, Any] = {"random": random.getstate(), "torch": torch.get_rng_state()}
        numpy = sys.modules.get("numpy")
        if numpy:
            states["numpy.random"] = numpy.random.get_state(legacy=False)
        return states

    def moved(self) -> list[str]:
        """Modules whose generator was drawn from or seeded since."""
        now = self._read()
        return [name for name, state in self._states.items() if not _same(state, now[name])]

    def restore(self) -> None:
        """Puts them back."""
        random.setstate(self._states["random"])
        torch.set_rng_state(self._states["torch"])
        if "numpy.random" in self._states:
            sys.modules["numpy"].random.set_state(self._states["numpy.random"])


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return repr(a) == repr(b) if not isinstance(a, dict) else a["state"]["pos"] == b["state"]["pos"] and _same_keys(a, b)


def _same_keys(a: Any, b: Any) -> bool:
    return bool((a["state"]["key"] == b["state"]["key"]).all()) and a["has_gauss"] == b["has_gauss"]
