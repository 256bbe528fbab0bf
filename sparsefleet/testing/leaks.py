"""What a piece of code leaves behind at every call: tensors, Python objects, threads, child processes, open files."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sparsefleet.testing.allocation import Ledger

_WARM = 3
_CALLS, _CALLS_OF_THE_SLOW, _SLOW_S = 10, 3, 0.1
"""Calls in each half; where one takes longer than ``_SLOW_S``, fewer."""
_BLOCKS_PER_CALL, _BYTES_PER_CALL = 20, 16384
"""Of Python's allocator; below it are the interpreter's and torch's own caches. Tensors are counted to the byte."""


@dataclass(frozen=True)
class _Held:
    """What stands at one moment."""

    tensor_bytes: int
    python_blocks: int
    python_bytes: int
    children: int
    threads: tuple[str, ...]
    files: tuple[str, ...]


def growth(work: Callable[[], object]) -> list[str]:
    """What grew over two runs of calls of ``work``, in the first and in the second, with how much per call.

    A pool or a cache that the first calls fill and later ones use again is no leak.
    """
    with Ledger() as ledger:
        work()  # imports late what it needs
        began = time.perf_counter()
        work()
        n = _CALLS if time.perf_counter() - began < _SLOW_S else _CALLS_OF_THE_SLOW
        was_tracing = tracemalloc.is_tracing()
        gc.collect()
        gc.freeze()  # what stands already need not be looked through at every collection
        if not was_tracing:
            tracemalloc.start()
        try:
            return _told(_thrice(work, n, ledger), n) and _told(_thrice(work, n, ledger), n)  # what grows by chance does so once
        finally:
            if not was_tracing:
                tracemalloc.stop()
            gc.unfreeze()


def _thrice(work: Callable[[], object], n: int, ledger: Ledger) -> list[_Held]:
    """What stands after a few calls that warm up, after ``n`` more, and after ``n`` more."""
    held = []
    for calls in (_WARM, n, n):
        for _ in range(calls):
            work()
        gc.collect()
        traced = tracemalloc.get_traced_memory()[0]
        threads = tuple(thread.name for thread in threading.enumerate())
        held.append(_Held(ledger.live, sys.getallocatedblocks(), traced, _n_children(), threads, _open_files()))
    return held


_COUNTS = (
    ("tensor_bytes", 1 / _CALLS, "{:,.0f} bytes of tensors"),
    ("python_blocks", _BLOCKS_PER_CALL, "{:,.0f} Python objects"),
    ("python_bytes", _BYTES_PER_CALL, "{:,.0f} bytes of Python objects"),
    ("children", 1 / _CALLS, "{:g} child processes"),
)


def _told(held: list[_Held], n: int) -> list[str]:
    found = []
    for name, least, text in _COUNTS:
        a, b, c = (getattr(one, name) for one in held)
        if min(b - a, c - b) >= least * n:
            found.append(text.format((c - a) / n / 2) + " per call")
    for name, text in (("threads", "threads"), ("files", "open files")):
        a, b, c = (getattr(one, name) for one in held)
        if len(a) < len(b) < len(c):
            new = Counter(c) - Counter(a)
            found.append(f"{(len(c) - len(a)) / n / 2:g} {text} per call, such as {next(iter(new))}")
    return found


def _n_children() -> int:
    lists = Path("/proc/self/task").glob("*/children")
    found = [len(path.read_text().split()) for path in lists]
    return sum(found) if found else len(multiprocessing.active_children())


def _open_files() -> tuple[str, ...]:
    """What each open descriptor leads to; empty where the system does not tell."""
    targets = []
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        try:
            targets.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:  # the one that listed the folder is closed again
            continue
    return tuple(targets)
