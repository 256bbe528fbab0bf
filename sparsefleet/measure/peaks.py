"""The limits of this machine, measured: how fast it streams, fetches rows by index, multiplies and starts an operation.

Every figure is the best of several kernels and repetitions: a limit that a busy neighbour lowered would make honest kernels look impossible.

* *read*: a sum. *stream*: a sum, a copy or an update in place, whichever is best; bytes read and bytes written both count.
* *gather*: ``embedding_bag`` with ``sum``, 64 rows a bag. Its access is that of a sparse product: rows fetched by index are added in
  registers, and a 64th of what is read is written. Rows of 4 bytes are fetched by a CSR product with a vector, which does nothing else.
  ``index_select`` is tried too, but it writes everything that it reads. Indices (and CSR's values) count as bytes, as they do in the limit
  model's Q_G + Q_D. A call fetches so many rows that a DRAM buffer does not end up in the cache.
* *product*: square matrix products, also in other precisions where they run.
* *launch*: the smallest operation, as called from Python.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsefleet.home import cache_dir
from sparsefleet.measure import machine
from sparsefleet.measure.fingerprint import fingerprint
from sparsefleet.ops.csr import csr_tensor
from sparsefleet.trial.spec import digest

PROTOCOL = "sf-peaks/1"
ROW_BYTES = (4, 64, 256, 1024)
BAG = 64
_ASSUMED = {1: 32 * 2**10, 2: 2**20, 3: 32 * 2**20}
_DRAM_LEAST, _DRAM_MOST = 64 * 2**20, 2**30
_TRY_S = 0.02
_PRODUCTS = (1024, 2048)
_PRECISIONS = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}

Call = Callable[[], object]


@dataclass(frozen=True)
class Level:
    """One level of the memory, as seen by all threads together.

    Attributes:
        name: ``l1``, ``l2``, ``l3`` or ``dram``.
        stream_room: bytes that it holds of data that the threads divide among them; None for DRAM.
        gather_room: bytes that it holds of a table that every thread reads.
        read: bytes per second of a stream that is only read.
        stream: bytes per second of reads and writes together.
        gather: bytes per second (index bytes included) by the bytes of a row.
    """

    name: str
    stream_room: int | None
    gather_room: int | None
    read: float
    stream: float
    gather: Mapping[int, float]


@dataclass(frozen=True)
class Peaks:
    """What this machine can do at best, on one device with one number of threads.

    Attributes:
        machine: the fingerprint's id.
        levels: fastest first, DRAM last.
        flops: per second of a matrix product, by precision.
        launch_s: the shortest time of any operation.
    """

    machine: str
    device: str
    threads: int
    levels: tuple[Level, ...]
    flops: Mapping[str, float]
    launch_s: float
    protocol: str = PROTOCOL

    @property
    def id(self) -> str:
        """Digest of all of it: ``pk:…``."""
        return f"pk:{digest(self.to_json())[:16]}"

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {
            "levels": [asdict(level) | {"gather": {str(row): rate for row, rate in level.gather.items()}} for level in self.levels]
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Peaks:
        """The inverse of ``to_json``."""
        levels = tuple(Level(**{**v, "gather": {int(row): rate for row, rate in v["gather"].items()}}) for v in values["levels"])
        return Peaks(**{**values, "levels": levels})

    def stream_s(self, n_bytes: float, working_set: float, *, reads_only: bool = False) -> float:
        """Least seconds to stream ``n_bytes`` out of ``working_set`` bytes that are used again and again.

        What fits into the caches comes from there, and the rest from DRAM.
        """
        shares = _shares(working_set, [level.stream_room for level in self.levels])
        rates = [level.read if reads_only else level.stream for level in self.levels]
        return n_bytes * sum(share / rate for share, rate in zip(shares, rates, strict=True))

    def gather_s(self, n_rows: float, row_bytes: float, table_bytes: float, index_bytes: float) -> float:
        """Least seconds to fetch ``n_rows`` rows by index out of a table, with ``index_bytes`` of indices and values for each.

        Between the measured row sizes the time per row is interpolated; longer rows go at the rate of the longest.
        """
        shares = _shares(table_bytes, [level.gather_room for level in self.levels])
        per_row = sum(share * _row_s(level, row_bytes, index_bytes) for share, level in zip(shares, self.levels, strict=True))
        return n_rows * per_row


def _shares(n_bytes: float, rooms: list[int | None]) -> list[float]:
    """Share of ``n_bytes`` that lies in each level if every level is filled before the next one."""
    shares, left = [], n_bytes
    for room in rooms:
        here = left if room is None else min(left, room)
        shares.append(here / n_bytes if n_bytes else 0.0)
        left -= here
    return shares if n_bytes else [1.0, *[0.0] * (len(rooms) - 1)]


def _row_s(level: Level, row_bytes: float, index_bytes: float) -> float:
    sizes = sorted(level.gather)
    times = [(size + _index_bytes(size)) / level.gather[size] for size in sizes]
    if row_bytes <= sizes[0]:
        return (row_bytes + index_bytes) / level.gather[sizes[0]]
    for (small, large), (fast, slow) in zip(pairwise(sizes), pairwise(times), strict=True):
        if row_bytes <= large:
            return fast + (slow - fast) * (row_bytes - small) / (large - small)
    return (row_bytes + index_bytes) / level.gather[sizes[-1]]


def _index_bytes(row_bytes: int) -> int:
    """int32 index, and for the product with a vector a float32 value beside it."""
    return 8 if row_bytes == 4 else 4


def peaks(device: str, threads: int, *, refresh: bool = False) -> Peaks:
    """The limits of ``device`` with ``threads`` threads: from the cache, or measured now (about 3 s on two cores).

    Args:
        refresh: measure again and keep the better of old and new; for when a result came out faster than its limit.
    """
    name = fingerprint()["id"]
    path = _cache_file(name, device, threads)
    stored = _load(path)
    if stored is not None and not refresh:
        return stored
    found = measure(device, threads, name)
    best = found if stored is None else better(stored, found)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(best.to_json(), allow_nan=False))
    temporary.replace(path)
    return best


def better(one: Peaks, other: Peaks) -> Peaks:
    """The higher rate of two measurements of the same limits, figure by figure."""
    levels = [replace(a, **_faster(a, b)) for a, b in zip(one.levels, other.levels, strict=True)]
    flops = {name: max(one.flops.get(name, 0.0), other.flops.get(name, 0.0)) for name in one.flops.keys() | other.flops.keys()}
    return Peaks(one.machine, one.device, one.threads, tuple(levels), flops, min(one.launch_s, other.launch_s))


def _faster(one: Level, other: Level) -> dict[str, Any]:
    gather = {row: max(one.gather[row], other.gather[row]) for row in one.gather}
    return {"read": max(one.read, other.read), "stream": max(one.stream, other.stream), "gather": gather}


def _cache_file(machine_id: str, device: str, threads: int) -> Path:
    key = digest([machine_id, device, threads, PROTOCOL])[:16]
    return cache_dir() / f"peaks-{key}.json"


def _load(path: Path) -> Peaks | None:
    try:
        return Peaks.from_json(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError):  # absent, or left half-written or by another version: measured anew
        return None


def measure(device: str, threads: int, machine_id: str = "") -> Peaks:
    """Measures now, and leaves torch's number of threads and its precision flags as they were."""
    clock = _Clock(device)
    with _settings(threads), torch.inference_mode():
        levels = [_level(clock, *rooms) for rooms in _rooms(device, threads)]
        flops = dict(_products(clock))
        one = torch.ones(1, device=device)
        launch = min(clock.best(lambda: one.add_(1)), clock.best(lambda: torch.neg(one, out=one)))
    return Peaks(machine_id, device, threads, _ordered(levels), flops, launch)


def _ordered(levels: list[Level]) -> tuple[Level, ...]:
    """No level slower than the next one: a slower one is only its kernels' overhead, and what fits there is in the next one too."""
    ordered: list[Level] = []
    for level in reversed(levels):
        ordered.insert(0, replace(level, **_faster(level, ordered[0])) if ordered else level)
    return tuple(ordered)


@contextmanager
def _settings(threads: int) -> Iterator[None]:
    before, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_float32_matmul_precision(precision)


def _rooms(device: str, threads: int) -> Iterator[tuple[str, int | None, int | None, int]]:
    """(name, room for divided data, room for a shared table, bytes of the test buffer)."""
    if device.startswith("cuda"):
        l2 = int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or 2**22
        yield "l2", l2, l2, l2 // 2
        yield "dram", None, None, min(_DRAM_MOST, max(_DRAM_LEAST, 8 * l2))
        return
    caches = machine.caches() or _ASSUMED
    for level in sorted(caches):
        shared = 1 if level == max(caches) and level > 1 else threads  # the last level is one for all, the others are each core's own
        yield f"l{level}", caches[level] * shared, caches[level], caches[level] // 2
    free = machine.meminfo().get("MemAvailable", 4 * _DRAM_MOST)
    yield "dram", None, None, min(_DRAM_MOST, max(_DRAM_LEAST, 4 * caches[max(caches)]), free // 8)


class _Clock:
    """Seconds of the fastest of many calls; on CUDA between two events, several calls at once so that the host does not count."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    def best(self, call: Call) -> float:
        """The least seconds of one call within ``_TRY_S`` after two calls of warm-up, at least three calls."""
        for _ in range(2):
            call()
        found, end, n = float("inf"), time.perf_counter() + _TRY_S, 0
        while n < 3 or time.perf_counter() < end:
            found, n = min(found, self._once(call)), n + 1
        return found

    def _once(self, call: Call) -> float:
        if self.device.type == "cpu":
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(self.device)
        first.record()
        for _ in range(8):
            call()
        last.record()
        torch.cuda.synchronize(self.device)
        return float(first.elapsed_time(last)) / 8e3


def _level(clock: _Clock, name: str, stream_room: int | None, gather_room: int | None, n_bytes: int) -> Level:
    threads = torch.get_num_threads() if clock.device.type == "cpu" else 1
    shared = 1 if name in ("l3", "dram") or clock.device.type == "cuda" else threads
    read, stream = _stream(clock, n_bytes * shared)
    buffer = torch.ones(n_bytes // 4, device=clock.device)
    return Level(name, stream_room, gather_room, read, stream, {row: _gather(clock, buffer, row) for row in ROW_BYTES})


def _stream(clock: _Clock, n_bytes: int) -> tuple[float, float]:
    """Bytes per second, of the best kernel that only reads and of the best of all, on ``n_bytes`` in all."""
    whole = torch.ones(n_bytes // 4, device=clock.device)
    source, target = whole.chunk(2)
    again = max(1, 2**22 // n_bytes)  # a small buffer is summed many times over, or the call itself would be measured
    rows = whole.expand(again, whole.numel())
    read = min(clock.best(whole.sum), clock.best(rows.sum) / again)
    update = clock.best(partial(source.mul_, 1.0))
    copy = clock.best(partial(target.copy_, source))
    return n_bytes / read, n_bytes / min(read, update, copy)


def _gather(clock: _Clock, buffer: Tensor, row_bytes: int) -> float:
    """Bytes per second, indices included, of the best kernel that fetches rows of ``buffer`` in random order."""
    table = buffer.view(-1, row_bytes // 4)
    n_rows = table.shape[0]
    n_fetched = max(2**14, min(n_rows, 2**20))
    order = torch.randint(n_rows, (n_fetched,), generator=torch.Generator().manual_seed(0)).int().to(clock.device)
    bags = torch.arange(0, order.numel(), BAG, device=clock.device, dtype=torch.int32)
    calls: list[Call]
    if row_bytes == 4:
        ends = torch.cat([bags, torch.tensor([order.numel()], device=clock.device, dtype=torch.int32)])
        ones = torch.ones(order.numel(), device=clock.device)
        matrix = csr_tensor(ends, order, ones, (bags.numel(), n_rows))
        calls = [partial(torch.mv, matrix, table[:, 0]), partial(torch.mm, matrix, table)]
    else:
        calls = [partial(torch.nn.functional.embedding_bag, order, table, bags, mode="sum")]
        if order.numel() * row_bytes <= 2**24:
            out = torch.empty(order.numel(), row_bytes // 4, device=clock.device)
            calls.append(partial(torch.index_select, table, 0, order, out=out))
    return order.numel() * (row_bytes + _index_bytes(row_bytes)) / min(clock.best(call) for call in calls)


def _products(clock: _Clock) -> Iterator[tuple[str, float]]:
    for name, dtype in _PRECISIONS.items():
        best = 0.0
        for size in _PRODUCTS if name == "fp32" or clock.device.type == "cuda" else _PRODUCTS[:1]:
            left, right = (torch.randn(size, size, device=clock.device).to(dtype) for _ in range(2))
            best = max(best, 2 * size**3 / clock.best(partial(torch.mm, left, right)))
        yield name, best
    if clock.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        left, right = (torch.randn(_PRODUCTS[-1], _PRODUCTS[-1], device=clock.device) for _ in range(2))
        yield "tf32", 2 * _PRODUCTS[-1] ** 3 / clock.best(partial(torch.mm, left, right))
