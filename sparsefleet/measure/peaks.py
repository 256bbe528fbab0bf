"""The limits of this machine, measured: how fast it streams, fetches rows by index, multiplies and starts an operation.

Every figure is the best of several kernels and repetitions: a limit that a busy neighbour lowered would make honest kernels look impossible.

* *read*: a sum. *stream*: a sum, a copy or an update in place, whichever is best; bytes read and bytes written both count.
* *gather*: our own kernel, which fetches rows by index as our products do and adds them up in registers, and ``embedding_bag`` with ``sum``,
  64 rows a bag. Rows of 4 bytes are fetched by a CSR product with a vector, which does nothing else.
  ``index_select`` is tried too, but it writes everything that it reads. Indices (and CSR's values) count as bytes, as they do in the limit
  model's Q_G + Q_D. A call fetches so many rows that a DRAM buffer does not end up in the cache.
* *product*: square matrix products, also in other precisions where they run, and in fp32 our own multiply-adds in registers: a matrix product
  may reach half of what the processor can, and a sparse one must not look impossible beside it.
* *launch*: the smallest operation, as called from Python.

On CUDA every call is recorded in a graph and replayed, so that none of these is the host's time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sparsefleet.home import cache_dir, write_private
from sparsefleet.measure import machine
from sparsefleet.measure.clock import Machine, read_machine
from sparsefleet.measure.cpus import cpus_allowed
from sparsefleet.measure.fingerprint import fingerprint
from sparsefleet.measure.graph import recorded
from sparsefleet.measure.rates import PROTOCOL, Level as Level, Peaks as Peaks, better, faster, index_bytes_of
from sparsefleet.ops import native, triton_linear
from sparsefleet.ops.csr import csr_tensor
from sparsefleet.trial.spec import digest

ROW_BYTES = (4, 64, 256, 1024)
BAG = 64
_ASSUMED = {1: 32 * 2**10, 2: 2**20, 3: 32 * 2**20}
_DRAM_LEAST, _DRAM_MOST = 64 * 2**20, 2**30
_TRY_S = 0.02
_LAUNCHES = 100
_DISTURBED = 0.05
_MOST_TAKES = 5
_PRODUCTS = {"cpu": (1024, 2048), "cuda": (2048, 4096)}
_RECORDED = 32
_FETCHED_CUDA = 2**23
"""Rows that a call fetches: of 64 bytes they keep a GPU busy for a tenth of a millisecond."""
_ROUNDS = 10**5
_PRECISIONS = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}

Call = Callable[[], object]


def peaks(device: str, threads: int, *, refresh: bool = False) -> Peaks:
    """The limits of ``device`` with ``threads`` threads: from the cache, or measured now (about 3 s on two cores).

    Limits that were taken beside busy neighbours are taken again by the next calls, up to five times; the best of each figure stays.

    Args:
        refresh: measure again and keep the better of old and new; for when a result came out faster than its limit.
    """
    name = fingerprint()["id"]
    path = _cache_file(name, device, threads)
    stored = _load(path)
    if stored is not None and not refresh and (stored.disturbed <= _DISTURBED or stored.takes >= _MOST_TAKES):
        return stored
    found = measure(device, threads, name)
    best = found if stored is None else better(stored, found)
    write_private(path, json.dumps(best.to_json(), allow_nan=False))
    return best


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
    clock, cpus = _Clock(device, threads), cpus_allowed()
    before = read_machine(cpus)
    with _settings(threads), torch.inference_mode():
        levels = [_level(clock, *rooms) for rooms in _rooms(device, threads)]
        flops = dict(_products(clock))
        one = torch.ones(1, device=device)
        launch = min(clock.best(partial(_repeat, partial(one.add_, 1))), clock.best(partial(_repeat, one.neg_))) / _LAUNCHES
    disturbed = 0.0 if clock.device.type == "cuda" else _taken_by_others(before, read_machine(cpus), len(cpus))
    return Peaks(machine_id, device, threads, _ordered(levels), flops, launch, disturbed)


def _repeat(call: Call, n: int = _LAUNCHES) -> None:
    for _ in range(n):
        call()


def _taken_by_others(before: Machine | None, after: Machine | None, n_cpus: int) -> float:
    if before is None or after is None or after.wall_s <= before.wall_s:
        return 0.0
    foreign = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    return round(max(0.0, foreign + after.steal_s - before.steal_s) / n_cpus / (after.wall_s - before.wall_s), 3)


def _ordered(levels: list[Level]) -> tuple[Level, ...]:
    """No level slower than the next one: a slower one is only its kernels' overhead, and what fits there is in the next one too."""
    ordered: list[Level] = []
    for level in reversed(levels):
        ordered.insert(0, replace(level, **faster(level, ordered[0])) if ordered else level)
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
    """Seconds of the fastest of many calls.

    One thread is timed by its own CPU time, which a neighbour does not lengthen, and several by the wall. On CUDA several recorded calls run
    between two events, so that the host does not count.
    """

    def __init__(self, device: str, threads: int) -> None:
        self.device = torch.device(device)
        self._now = time.thread_time if threads == 1 else time.perf_counter

    def best(self, call: Call) -> float:
        """The least seconds of one call within ``_TRY_S``, of three calls at least; the first one finds cold caches and is never the best."""
        once = partial(self._once, call) if self.device.type == "cpu" else self._replays(call)
        found, end, n = float("inf"), time.perf_counter() + _TRY_S, 0
        while n < 3 or time.perf_counter() < end:
            found, n = min(found, once()), n + 1
        return found

    def _once(self, call: Call) -> float:
        start = self._now()
        call()
        return self._now() - start

    def _replays(self, call: Call) -> Callable[[], float]:
        """Times many calls as one, bare ones where they cannot be recorded."""
        replay = recorded([call] * _RECORDED, self.device)
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

        def once() -> float:
            torch.cuda.synchronize(self.device)
            first.record()
            if replay is not None:
                replay()
            else:
                _repeat(call, _RECORDED)
            last.record()
            torch.cuda.synchronize(self.device)
            return float(first.elapsed_time(last)) / (1e3 * _RECORDED)

        return once


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
    n_fetched = max(2**14, min(n_rows, 2**20)) if clock.device.type == "cpu" else _FETCHED_CUDA
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
        if clock.device.type == "cpu" and native.library() is not None:
            calls.append(partial(native.gather, table, order))
        if triton_linear.available(clock.device) is None:
            calls.append(partial(triton_linear.triton_gather, table, order, BAG))
        if order.numel() * row_bytes <= 2**24:
            out = torch.empty(order.numel(), row_bytes // 4, device=clock.device)
            calls.append(partial(torch.index_select, table, 0, order, out=out))
    return order.numel() * (row_bytes + index_bytes_of(row_bytes)) / min(clock.best(call) for call in calls)


def _products(clock: _Clock) -> Iterator[tuple[str, float]]:
    sizes = _PRODUCTS[clock.device.type]
    for name, dtype in _PRECISIONS.items():
        best = 0.0
        for size in sizes if name == "fp32" or clock.device.type == "cuda" else sizes[:1]:
            left, right = (torch.randn(size, size, device=clock.device).to(dtype) for _ in range(2))
            best = max(best, 2 * size**3 / clock.best(partial(torch.mm, left, right)))
        if name == "fp32" and clock.device.type == "cpu" and native.library() is not None:
            best = max(best, native.multiply_add(1) * _ROUNDS / clock.best(partial(native.multiply_add, _ROUNDS)))
        yield name, best
    if clock.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        left, right = (torch.randn(sizes[-1], sizes[-1], device=clock.device) for _ in range(2))
        yield "tf32", 2 * sizes[-1] ** 3 / clock.best(partial(torch.mm, left, right))
