"""RF-01, RF-02 and RF-23: busy workers are killed while a sweep runs, and its driver too. Every trial ends with one committed record.

A worker is the Ray process that supervises a slot; its trial's process dies with it. The driver is ``sparsefleet resume`` in a process of its own.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chaos.history import violations
from benchmarks.chaos.sweep import Sweep, command_of, gone, processes_below
from benchmarks.figures import Figure, Run
from sparsefleet.spawn import module_command

_HELD = 75
_SOAK_EVERY_S = 2.0
_MIB = 1 << 20


class Killer(threading.Thread):
    """Kills a busy worker below ``driver`` every ``every_s`` seconds until stopped.

    Attributes:
        driver: process id; may change.
    """

    def __init__(self, every_s: float, driver: int, seed: int = 0) -> None:
        super().__init__(daemon=True)
        self.kills, self.driver = 0, driver
        self._every_s, self._random, self._ended = every_s, random.Random(seed), threading.Event()

    def run(self) -> None:
        """The thread."""
        while not self._ended.wait(self._every_s):
            busy = processes_below(self.driver, "ray::Supervisor.run")
            if busy:
                with suppress(psutil.NoSuchProcess):
                    self._random.choice(busy).kill()
                    self.kills += 1

    def stop(self) -> None:
        """End it."""
        self._ended.set()
        self.join()


def told(sweep: Sweep) -> dict[str, Any]:
    """What became of a sweep's trials."""
    rows = sweep.rows()
    attempts = [attempt for row in rows for attempt in row.attempts]
    times = [datetime.fromisoformat(a[name]) for a in attempts for name in ("started", "ended") if a[name]]
    committed = [sum(a["end"] == "SUCCEEDED" for a in row.attempts) for row in rows]
    return {
        "trials": len(rows),
        "succeeded": sum(row.state == "SUCCEEDED" and row.record is not None for row in rows),
        "lost": committed.count(0),
        "committed_twice": sum(n > 1 for n in committed),
        "violations": violations(sweep.home, sweep.id),
        "ends": dict(Counter(str(a["end"]) for a in attempts)),
        "running_s": (max(times) - min(times)).total_seconds(),
    }


def hit(found: dict[str, Any], kills: int, every_s: float, asked: Run) -> list[Figure]:
    """Whether the kills really came and were felt, half of them at least: without them nothing is shown."""
    n_due, n_ended = found["running_s"] / every_s, sum(found["ends"].get(end, 0) for end in ("LOST", "KILLED"))
    return [
        Figure("workers killed", "workers", kills, target=max(1, round(n_due / 2)), note=asked.note(f"one was due {n_due:.0f} times")),
        Figure("attempts lost with them", "attempts", n_ended, target=max(1, round(kills / 2)), note=asked.note()),
    ]


def contract(found: dict[str, Any], n_trials: int, asked: Run, note: str) -> list[Figure]:
    """The figures that every sweep under kills must keep."""
    wrong = found["violations"]
    return [
        Figure("results", "trials", found["succeeded"], target=n_trials, note=asked.note(note)),
        Figure("results lost", "trials", found["lost"], target=0, at_least=False, note=asked.note()),
        Figure("results committed twice", "trials", found["committed_twice"], target=0, at_least=False, note=asked.note()),
        Figure("violations of the contract", "violations", len(wrong), target=0, at_least=False, note=asked.note("; ".join(wrong[:3]))),
    ]


def figures(asked: Run) -> list[Figure]:
    """RF-01: what a sweep of 200 trials lost to a kill every 3 s, and how much longer it took than without."""
    n_trials = asked.pick(200, 20)
    result: dict[str, Any] = {}
    for name, every_s in [("baseline", None), ("chaos", 3.0)]:
        with tempfile.TemporaryDirectory(prefix="sparsefleet-chaos-", ignore_cleanup_errors=True) as folder:
            asked.say(f"{name}: {n_trials} trials")
            sweep = Sweep(Path(folder), n_trials // 2)
            driver = sweep.driver()
            killer = Killer(every_s, driver.pid) if every_s else None
            if killer:
                killer.start()
            driver.wait(900)
            if killer:
                killer.stop()
            result[name] = {**told(sweep), "kills": killer.kills if killer else 0}
    asked.keep(result)
    chaos = result["chaos"]
    slower = chaos["running_s"] / result["baseline"]["running_s"]
    return [
        *contract(chaos, n_trials, asked, f"{chaos['kills']} workers killed"),
        *hit(chaos, chaos["kills"], 3.0, asked),
        Figure("time under kills", "s", chaos["running_s"], note=asked.note()),
        Figure("time under kills over time without", "times", slower, target=2.0, at_least=False, note=asked.note()),
    ]


def second_submit(sweep: Sweep) -> tuple[int, str]:
    """What a second ``submit`` of a sweep that is being driven ends with and says."""
    command = module_command("sparsefleet.cli", "submit", "grid", str(sweep.grid))
    done = subprocess.run(command, env=sweep.environment, cwd=sweep.home, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stderr


def storm(asked: Run) -> list[Figure]:
    """RF-02: a kill every second, the driver killed four times as well, and a second submit while the first runs."""
    n_trials, shares = asked.pick(200, 24), (0.15, 0.35, 0.55, 0.75)
    with tempfile.TemporaryDirectory(prefix="sparsefleet-chaos-", ignore_cleanup_errors=True) as folder:
        sweep = Sweep(Path(folder), n_trials // 2)
        driver = sweep.driver()
        killer = Killer(1.0, driver.pid)
        killer.start()
        sweep.wait_for(1, driver)
        code, said = second_submit(sweep)
        n_driver_kills = 0
        for share in shares:
            sweep.wait_for(round(share * n_trials), driver, limit_s=300)
            if driver.poll() is None:
                driver.kill()
                n_driver_kills += 1
            driver.wait()
            driver = sweep.driver()
            killer.driver = driver.pid
        end = driver.wait(900)
        killer.stop()
        found, left = told(sweep), [command_of(process) for process in gone(sweep.home, 20.0)]
    asked.keep({**found, "kills": killer.kills, "second": [code, said], "left": left, "exit": end})
    named = f"sparsefleet watch {sweep.id}" in said
    return [
        *contract(found, n_trials, asked, f"{killer.kills} workers and {n_driver_kills} drivers killed"),
        *hit(found, killer.kills, 1.0, asked),
        Figure("drivers killed", "drivers", n_driver_kills, target=len(shares), note=asked.note()),
        Figure("the second submit's exit code", "", code, target=_HELD, most=_HELD, note=asked.note()),
        Figure("it names the command that watches the first", "(1: yes)", int(named), target=1, note=asked.note()),
        Figure("the last driver's exit code", "", end, target=0, most=0, note=asked.note()),
        Figure("processes left", "processes", len(left), target=0, at_least=False, note=asked.note("; ".join(left[:3]))),
    ]


def soak(asked: Run) -> list[Figure]:
    """RF-23: many tiny trials with a kill every 2 s; what the driver and its ledger have grown by."""
    n_trials = asked.pick(2000, 200)
    with tempfile.TemporaryDirectory(prefix="sparsefleet-chaos-", ignore_cleanup_errors=True) as folder:
        sweep = Sweep(Path(folder), n_trials // 2, epochs=0)
        driver = sweep.driver()
        killer = Killer(_SOAK_EVERY_S, driver.pid)
        killer.start()
        sizes: list[tuple[int, float]] = []
        while driver.poll() is None:
            time.sleep(1.0)
            with suppress(psutil.NoSuchProcess):
                sizes.append((sweep.row().counts.get("SUCCEEDED", 0), psutil.Process(driver.pid).memory_info().rss / _MIB))
        killer.stop()
        found = told(sweep)
        ledger_mb = sum(path.stat().st_size for path in sweep.home.glob("ledger.db*")) / 1e6
    grown = growth(sizes, n_trials)
    asked.keep({**found, "kills": killer.kills, "rss": sizes, "ledger_mb": ledger_mb, "exit": driver.returncode})
    return [
        *contract(found, n_trials, asked, f"{killer.kills} workers killed"),
        *hit(found, killer.kills, _SOAK_EVERY_S, asked),
        Figure("the driver's resident memory, from a twentieth of the trials to the end", "MB", grown, target=50, at_least=False),
        Figure("the ledger, with its log", "MB", ledger_mb, target=5, at_least=False, note=asked.note()),
        Figure("trials per second under kills", "trials/s", n_trials / found["running_s"], note=asked.note()),
    ]


def growth(sizes: Sequence[tuple[int, float]], n_trials: int) -> float:
    """Megabytes between the first sample with a twentieth of the trials done and the largest one after it."""
    after = [mib for n_done, mib in sizes if n_done >= n_trials / 20]
    return (max(after) - after[0]) * _MIB / 1e6
