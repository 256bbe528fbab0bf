"""The rates of a machine at each level of its memory, and how long they need for what a network must move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from sparsefleet.trial.spec import digest

PROTOCOL = "sf-peaks/2"


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
        flops: per second of a matrix product or of multiply-adds in registers, whichever is more, by precision.
        launch_s: the shortest time of any operation.
        disturbed: share of the CPU time that went to others meanwhile.
        takes: measurements that the figures are the best of.
    """

    machine: str
    device: str
    threads: int
    levels: tuple[Level, ...]
    flops: Mapping[str, float]
    launch_s: float
    disturbed: float = 0.0
    takes: int = 1
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
    times = [(size + index_bytes_of(size)) / level.gather[size] for size in sizes]
    if row_bytes <= sizes[0]:
        return (row_bytes + index_bytes) / level.gather[sizes[0]]
    for (small, large), (fast, slow) in zip(pairwise(sizes), pairwise(times), strict=True):
        if row_bytes <= large:
            return fast + (slow - fast) * (row_bytes - small) / (large - small)
    return (row_bytes + index_bytes) / level.gather[sizes[-1]]


def index_bytes_of(row_bytes: int) -> int:
    """int32 index, and for the product with a vector a float32 value beside it."""
    return 8 if row_bytes == 4 else 4


def better(one: Peaks, other: Peaks) -> Peaks:
    """The higher rate of two measurements of the same limits, figure by figure."""
    levels = [replace(a, **faster(a, b)) for a, b in zip(one.levels, other.levels, strict=True)]
    flops = {name: max(one.flops.get(name, 0.0), other.flops.get(name, 0.0)) for name in one.flops.keys() | other.flops.keys()}
    return replace(
        one,
        levels=tuple(levels),
        flops=flops,
        launch_s=min(one.launch_s, other.launch_s),
        disturbed=min(one.disturbed, other.disturbed),
        takes=one.takes + other.takes,
    )


def faster(one: Level, other: Level) -> dict[str, Any]:
    """The higher rates of two levels, as fields."""
    gather = {row: max(one.gather[row], other.gather[row]) for row in one.gather}
    return {"read": max(one.read, other.read), "stream": max(one.stream, other.stream), "gather": gather}
