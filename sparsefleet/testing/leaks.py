"""What a piece of code leaves behind at every call: tensors, Python objects, threads, child processes, open files."""

from __future__ import annotations

import gc
import multiprocessing
import os
import statistics
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
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
            return _told(_watched(work, n, ledger)) and _told(_watched(work, n, ledger))  # what grows by chance does so once
        finally:
            if not was_tracing:
                tracemalloc.stop()
            gc.unfreeze()


def _watched(work: Callable[[], object], n: int, ledger: Ledger) -> list[_Held]:
    """What stands after a few calls that warm up, and after each of ``2 n`` more."""
    for _ in range(_WARM - 1):
        work()
    held: list[_Held] = []
    blocks = traced = 0  # what the calls added; what is noted here in between is not theirs
    for _ in range(2 * n + 1):
        before = sys.getallocatedblocks(), tracemalloc.get_traced_memory()[0]
        work()
        gc.collect()
        blocks += sys.getallocatedblocks() - before[0]
        traced += tracemalloc.get_traced_memory()[0] - before[1]
        threads = tuple(thread.name for thread in threading.enumerate())
        held.append(_Held(ledger.live, blocks, traced, _n_children(), threads, _open_files()))
    return held


_COUNTS = (
    ("tensor_bytes", 1 / _CALLS, "{:,.0f} bytes of tensors"),
    ("python_blocks", _BLOCKS_PER_CALL, "{:,.0f} Python objects"),
    ("python_bytes", _BYTES_PER_CALL, "{:,.0f} bytes of Python objects"),
    ("children", 1 / _CALLS, "{:g} child processes"),
)


def _told(held: list[_Held]) -> list[str]:
    found = []
    for name, least, text in _COUNTS:
        grown = _growth([getattr(one, name) for one in held], least)
        if grown >= least:
            found.append(text.format(grown) + " per call")
    for name, text in (("threads", "threads"), ("files", "open files")):
        lists = [getattr(one, name) for one in held]
        grown = _growth([len(one) for one in lists], 1 / _CALLS)
        if grown >= 1 / _CALLS:
            new = Counter(lists[-1]) - Counter(lists[0])
            found.append(f"{grown:g} {text} per call, such as {next(iter(new), 'one that is gone')}")
    return found


def _growth(counts: list[int], least: float) -> float:
    """Per call: what most calls add, or else what the first and the second half both add; 0 where neither reaches ``least``.

    What others free at one moment hides the leak of that half, and not that of the other calls.
    """
    n = len(counts) // 2
    usual = statistics.median(b - a for a, b in pairwise(counts))
    if usual >= least:
        return usual
    halves = (counts[n] - counts[0]) / n, (counts[-1] - counts[n]) / n
    return sum(halves) / 2 if min(halves) >= least else 0.0


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
