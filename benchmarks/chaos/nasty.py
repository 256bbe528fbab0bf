"""A plugin that does what no plugin should: one file, named in ``SPARSEFLEET_PLUGINS``; ``how`` says what happens once ``step`` is reached."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from sparsefleet import Connections, Progress, Rewirer, Rng, hookimpl

_MIB = 1 << 20
_kept: list[object] = []
_seen = {"step": 0, "seed": 0}


class Unpicklable(Exception):
    """Cannot be sent anywhere, nor printed."""

    def __reduce__(self) -> NoReturn:
        raise RuntimeError("never")

    def __str__(self) -> NoReturn:
        raise RuntimeError("never")


def _raise() -> None:
    raise ValueError("the idea was wrong")


def _raise_unpicklable() -> None:
    raise Unpicklable


def _interrupt() -> None:
    raise KeyboardInterrupt


def _fork_bomb() -> None:
    while True:
        try:
            os.fork()
        except OSError:
            continue


def _spin() -> None:
    _stubborn_child()
    while True:
        _seen["step"] += 0


def _hold_gil() -> None:
    _stubborn_child()
    re.match(r"(a+)+$", "a" * 60 + "b")


def _swallow() -> None:
    _stubborn_child()
    while True:
        try:
            time.sleep(60)
        except BaseException:  # noqa: BLE001
            continue


def _stubborn_child() -> None:
    """A process in a session of its own that no polite signal ends."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            while True:
                time.sleep(60)
        os._exit(0)


def _poison() -> None:
    """All that one can do to a process and its surroundings, and still end well; a file in ``POISON_MARKS`` says that it is done."""
    mark = os.open(Path(os.environ["POISON_MARKS"], str(_seen["step"])), os.O_WRONLY | os.O_CREAT)  # later no file can be opened
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(666)
    torch.set_flush_denormal(True)
    torch.nn.functional.relu = torch.nn.functional.cross_entropy = torch.Tensor.sum = _raise
    torch.nn.Linear.forward = lambda *_: _raise()
    os.chdir("/")
    os.umask(0o777)
    os.environ.update({"OMP_NUM_THREADS": "7", "SPARSEFLEET_HOME": "/nowhere", "PYTHONHASHSEED": "666"})
    sys.path.clear()
    sys.stdout = sys.stderr = None
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    for name in [name for name in sys.modules if name.startswith(("numpy", "sparsefleet"))]:
        del sys.modules[name]
    warnings.simplefilter("error")
    os.write(mark, b"done")
    os.close(mark)


def _leak() -> None:
    """50 MB, 20 threads, 50 open files, 3 processes and a file in shared memory."""
    _kept.append(torch.ones(50 * _MIB, dtype=torch.uint8))
    for _ in range(20):
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
    _kept.extend(open(os.devnull, "rb") for _ in range(50))  # noqa: SIM115
    _stubborn_child()
    _kept.extend(subprocess.Popen(["sleep", "3600"], start_new_session=session) for session in (False, True))
    path = Path(f"/dev/shm/{os.environ.get('LEAK_NAME', 'sparsefleet-leak')}-{os.getpid()}")
    with path.open("w+b") as file:
        file.truncate(_MIB)
        _kept.append(mmap.mmap(file.fileno(), _MIB))


def _allocate() -> None:
    while True:
        _kept.append(torch.ones(64 * _MIB, dtype=torch.uint8))


def _cuda_oom() -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


_ACTS: dict[str, Callable[[], object]] = {
    "raise": _raise,
    "unpicklable": _raise_unpicklable,
    "exit-0": lambda: sys.exit(0),
    "exit-3": lambda: sys.exit(3),
    "os-exit": lambda: os._exit(0),
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "kill-self": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "interrupt": _interrupt,
    "fork-bomb": _fork_bomb,
    "close-files": lambda: os.closerange(0, 4096),
    "hold-gil": _hold_gil,
    "spin": _spin,
    "swallow": _swallow,
    "poison": _poison,
    "leak": _leak,
    "allocate": _allocate,
    "cuda-oom": _cuda_oom,
}


class Nasty(Rewirer):
    """Behaves until ``step``; never changes the topology."""

    name = "nasty"
    how: str = "raise"
    step: int = 2

    def due(self, progress: Progress) -> bool:
        if progress.step == self.step and _seen["step"] != self.step:
            _seen["step"] = self.step
            _ACTS[self.how]()
        return False


class Blown(Rewirer):
    """Writes NaN into every weight at the end of step ``step``, where the seed is below ``seeds``."""

    name = "blown"
    step: int = 5
    seeds: int = 2

    def due(self, progress: Progress) -> bool:
        _seen["step"] = progress.step  # of two questions the later one: after this step
        return False

    def on_step(self, conn: Connections, lr: float, rng: Rng) -> None:
        if _seen["step"] == self.step and _seen["seed"] < self.seeds:
            conn.weight.fill_(float("nan"))

    def drop_score(self, conn: Connections) -> Tensor:
        return conn.weight.abs()


@hookimpl
def sparsefleet_rewirers() -> list[type[Rewirer]]:
    """Both."""
    return [Nasty, Blown]


@hookimpl
def sparsefleet_before_trial(trial: Mapping[str, Any]) -> None:
    """Remembers the seed."""
    _seen["seed"] = int(trial["seed"])
