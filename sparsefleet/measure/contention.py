"""Which rounds were disturbed: a pure function of the raw samples, so that anyone can drop the same ones again."""

from __future__ import annotations

from statistics import median

from sparsefleet.measure.samples import Samples

THREAD_LIMIT = 1.05
"""One thread: wall time over the thread's own CPU time."""
SHARE_LIMIT = 0.95
"""Several threads: the process's CPU time per second, over that side's median."""
FOREIGN_LIMIT = 0.02
"""Steal, and for several threads foreign CPU time, as a share of the window."""
WINDOW_S = 1.0
"""The system's counters tick every 10 ms, so a share of 2 % needs a window much longer than a round."""
CLOCK_LIMIT = 0.75
"""GPU: SM clock over the one it is set to run at, or where that cannot be read, over the fastest one seen in the samples."""


def drop_reasons(samples: Samples) -> list[str]:
    """One reason per round, or an empty string for a round that is kept."""
    reasons = ["no_time" if not all(samples.seconds[side][i] > 0 for side in samples.sides) else "" for i in range(samples.rounds)]
    for found in (_kept_from_running(samples), _machine_windows(samples), _slow_gpu(samples)):
        reasons = [first or second for first, second in zip(reasons, found, strict=True)]
    return reasons


def _kept_from_running(samples: Samples) -> list[str]:
    disturbed = [False] * samples.rounds
    for side in samples.sides if samples.cpu_s else ():
        pairs = list(zip(samples.seconds[side], samples.cpu_s[side], strict=True))
        if samples.clock == "cpu-1":
            hits = [wall > THREAD_LIMIT * cpu for wall, cpu in pairs]
        else:
            shares = [cpu / wall if wall > 0 else 0.0 for wall, cpu in pairs]
            least = SHARE_LIMIT * median(shares) if shares else 0.0
            hits = [share < least for share in shares]
        disturbed = [before or hit for before, hit in zip(disturbed, hits, strict=True)]
    return ["cpu_contention" if hit else "" for hit in disturbed]


def _machine_windows(samples: Samples) -> list[str]:
    reasons = [""] * samples.rounds
    if not samples.machine:
        return reasons
    for first, last in windows([row[0] for row in samples.machine]):
        (wall0, own0, busy0, steal0), (wall1, own1, busy1, steal1) = samples.machine[first], samples.machine[last]
        room = samples.n_cpus * (FOREIGN_LIMIT * (wall1 - wall0) + samples.tick_s)
        steal = steal1 - steal0
        foreign = max(0.0, (busy1 - busy0) - (own1 - own0)) if samples.clock == "cpu-n" else 0.0
        if steal + foreign > room:
            reasons[first:last] = ["steal" if steal >= foreign else "foreign_cpu"] * (last - first)
    return reasons


def windows(walls: list[float]) -> list[tuple[int, int]]:
    """Ranges ``(first, last)`` of rounds of at least ``WINDOW_S``; what is left over joins the last range.

    Args:
        walls: the time before the first round and after each round.
    """
    ranges, first = [], 0
    for last in range(1, len(walls)):
        if walls[last] - walls[first] >= WINDOW_S:
            ranges.append((first, last))
            first = last
    end = len(walls) - 1
    if first == end:
        return ranges
    if ranges:
        return [*ranges[:-1], (ranges[-1][0], end)]
    return [(0, end)]


def _slow_gpu(samples: Samples) -> list[str]:
    if not samples.mhz:
        return [""] * samples.rounds
    least = CLOCK_LIMIT * (samples.mhz_rated or max(mhz for side in samples.sides for mhz in samples.mhz[side]))
    return ["gpu_clock" if any(samples.mhz[side][i] < least for side in samples.sides) else "" for i in range(samples.rounds)]
