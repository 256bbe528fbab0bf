"""RF-11 and RF-17: trials that leave everything behind, and trials that want more memory than they may have."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chaos.bad_plugins import driven, good, how_of, nasty, sweep_of
from benchmarks.chaos.sweep import Sweep, command_of, gone, name_of, processes_below
from benchmarks.figures import Figure, Run

_MB = 1e6
_LIMIT_MIB = 512
_EVERY_S = 0.5


class Sampler(threading.Thread):
    """Resident bytes and open files of every supervisor and fork server below the driver, twice a second until stopped."""

    def __init__(self, driver: int) -> None:
        super().__init__(daemon=True)
        self.seen: dict[int, list[tuple[int, int]]] = {}
        self._driver, self._ended = driver, threading.Event()

    def run(self) -> None:
        """The thread."""
        while not self._ended.wait(_EVERY_S):
            supervisors = processes_below(self._driver, "ray::Supervisor")
            servers = [p for p in processes_below(self._driver) if "forkserver" in command_of(p) and is_server(p)]
            for process in [*supervisors, *servers]:
                with suppress(psutil.NoSuchProcess):
                    self.seen.setdefault(process.pid, []).append((process.memory_info().rss, process.num_fds()))

    def stop(self) -> None:
        """End it."""
        self._ended.set()
        self.join()

    def growth(self, what: int) -> int:
        """Of the process that has grown most, by how much from its first sample to its last: bytes (0) or files (1)."""
        kept = [samples for samples in self.seen.values() if len(samples) > 2]
        return max((samples[-1][what] - samples[0][what] for samples in kept), default=1 << 62)


def is_server(process: psutil.Process) -> bool:
    """Whether this is a fork server and not a trial of one: its parent is not one of the servers that a connection has made."""
    try:
        parent = process.parent()
        above = parent.parent() if parent else None
    except psutil.NoSuchProcess:
        return False
    return not (above and "forkserver" in command_of(above)) and "forkserver" in command_of(process) and bool(name_of(process))


def leaks(asked: Run) -> list[Figure]:
    """RF-11: 100 trials that each leave 50 MB, 20 threads, 50 open files, 4 processes and a file in shared memory."""
    n_seeds = asked.pick(100, 8)
    name = f"sparsefleet-leak-{os.getpid()}"
    with sweep_of([nasty("leak")], n_seeds, epochs=1, environment={"LEAK_NAME": name}) as sweep:
        driver = sweep.driver()
        sweep.wait_for(max(2, n_seeds // 10), driver, limit_s=300)  # until then they import
        sampler = Sampler(driver.pid)
        sampler.start()
        driver.wait(560)
        sampler.stop()
        rows, left = [row for row in sweep.rows() if how_of(row)], gone(sweep.home)
    shared = sorted(Path("/dev/shm").glob(f"{name}-*"))
    for path in shared:
        path.unlink()
    warned = [row for row in rows if told(row.record)]
    asked.keep({"samples": sampler.seen, "left": [command_of(p) for p in left], "warnings": (rows[0].record or {}).get("warnings")})
    well = sum(row.state == "SUCCEEDED" for row in rows)
    return [
        Figure("leaking trials that ended well", "trials", well, target=n_seeds, note=asked.note()),
        Figure("growth of a supervisor or fork server", "MB", sampler.growth(0) / _MB, target=20, at_least=False, note=asked.note()),
        Figure("files that one of them keeps open more than before", "files", sampler.growth(1), target=2, at_least=False),
        Figure("processes left", "processes", len(left), target=0, at_least=False, note=asked.note()),
        Figure("files left in /dev/shm", "files", len(shared), target=0, at_least=False, note=asked.note()),
        Figure("records that tell of threads, files, processes and shared memory", "records", len(warned), target=n_seeds),
    ]


def told(record: dict[str, Any] | None) -> bool:
    """Whether the record's warnings name all four kinds."""
    text = " ".join((record or {}).get("warnings", []))
    return all(word in text for word in ("threads left behind", "files left open", "processes left behind", "shared memory left behind"))


def memory(asked: Run) -> list[Figure]:
    """RF-17: a trial that allocates without end and one that CUDA refuses memory, beside good ones."""
    n_good = asked.pick(50, 10)
    methods = [good(n) for n in range(n_good - 1)]
    methods.insert(n_good // 2, nasty("allocate"))
    methods.insert(n_good // 4, nasty("cuda-oom"))
    with sweep_of(methods, epochs=1, more=f"limits: {{memory_mib: {_LIMIT_MIB}, timeout_s: 60}}") as sweep:
        code = driven(sweep)
        rows = sweep.rows()
        beside = overlapping(sweep)
    bad = {how_of(row): row for row in rows if how_of(row)}
    reasons = {how: row.reason or "" for how, row in bad.items()}
    asked.keep({"reasons": reasons, "attempts": {how: row.attempts for how, row in bad.items()}, "exit": code})
    named = sum("peak" in reason and f"limit {_LIMIT_MIB} MiB" in reason for reason in reasons.values())
    well = sum(row.state == "SUCCEEDED" for row in rows if not how_of(row))
    return [
        Figure("good trials that ended well", "trials", well, target=n_good, note=asked.note()),
        Figure("trials that ended OOM after two attempts", "trials", sum(is_oom(row) for row in bad.values()), target=2, note=asked.note()),
        Figure("whose reason names the peak and the limit", "trials", named, target=2, note=asked.note()),
        Figure("trials that ran beside a second attempt", "trials", beside, target=0, at_least=False, note=asked.note()),
        Figure("the driver's exit code", "(5: trials failed)", code, target=5, most=5, note=asked.note()),
    ]


def is_oom(row: Any) -> bool:
    """Whether a trial got one more try and no more."""
    return row.state == "OOM" and [attempt["end"] for attempt in row.attempts] == ["OOM", "OOM"]


def overlapping(sweep: Sweep) -> int:
    """Attempts of other trials that ran while a second attempt did."""
    spans = [(row.key, a["n"], a["started"], a["ended"]) for row in sweep.rows() for a in row.attempts]
    second = [span for span in spans if span[1] == 2]
    return sum(key != other and begun < until and since < ended for key, _, since, until in second for other, _, begun, ended in spans)
