"""RF-14: the disk fills up at random moments while a sweep runs. The driver says so and stops; nothing is half-written; with room again the
sweep is completed.

The home lies on a file system in memory of a few MiB; a file that takes all the rest of it is the fault, and its removal the repair.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.chaos.history import violations
from benchmarks.chaos.sweep import Sweep
from benchmarks.figures import Figure, NotRun, Run
from sparsefleet.ledger import read_ledger
from sparsefleet.ledger.rows import FAILED
from sparsefleet.ledger.store import file_sha256

SIZE_MIB = 24
"""Ledger, MLflow's database and the files of the sweep fit; one of 3 MiB does not even hold MLflow's empty tables."""
SAID = re.compile(r"the disk of .* is full: [\d.]+ MiB are free, \d+ MiB are needed")
EXIT = 4


@contextmanager
def small_disk(size_mib: int = SIZE_MIB) -> Iterator[Path]:
    """A mounted file system of that size.

    Raises:
        NotRun: this user may not mount.
    """
    with tempfile.TemporaryDirectory(prefix="sparsefleet-disk-") as folder:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", folder], capture_output=True, text=True, check=False
        )
        if mounted.returncode:
            raise NotRun(f"a file system of {size_mib} MiB cannot be mounted: {mounted.stderr.strip()}")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def fill(home: Path, leave_bytes: int = 0) -> Path:
    """Takes all of the file system but so many bytes."""
    path = home / "filler"
    with path.open("wb", buffering=0) as file, suppress(OSError):
        left = os.statvfs(home).f_bavail * os.statvfs(home).f_frsize - leave_bytes
        while left > 0:
            left -= file.write(b"\0" * min(left, 1 << 16))
    return path


def half_written(home: Path) -> list[str]:
    """Stored files that are not what they are called."""
    stored = [path for path in (home / "artifacts").rglob("*") if path.is_file() and len(path.name) == 64]
    return [path.name for path in stored if file_sha256(path) != path.name]


def figures(asked: Run) -> list[Figure]:
    """What is wrong after the disk was full at so many random moments of one sweep after the other."""
    n_points, rng = asked.pick(20, 2), random.Random(0)
    results: list[dict[str, Any]] = []
    with small_disk() as disk:
        for number in range(2 * n_points):  # some sweeps end before the disk is full
            if len(results) >= n_points:
                break
            home = disk / f"home-{number}"
            home.mkdir(mode=0o700)
            results += _one_sweep(home, min(4, n_points - len(results)), rng, asked)
            subprocess.run(["rm", "-rf", str(home)], check=True)
    asked.keep(results)
    quick = asked.note()
    return [
        Figure("moments at which the disk was full", "moments", len(results), target=20, note=quick),
        Figure(
            "stops with a message that says where and how much", "moments", sum(r["said"] for r in results), target=len(results), note=quick
        ),
        Figure("files half-written", "files", sum(len(r["half"]) for r in results), target=0, at_least=False, note=quick),
        Figure("trials that were blamed", "trials", sum(r["blamed"] for r in results), target=0, at_least=False, note=quick),
        Figure(
            "violations of the contract", "violations", sum(len(r["violations"]) for r in results), target=0, at_least=False, note=quick
        ),
        Figure(
            "sweeps completed with room again",
            "sweeps",
            sum(r["completed"] for r in results if r["last"]),
            target=sum(r["last"] for r in results),
        ),
    ]


def _one_sweep(home: Path, n_points: int, rng: random.Random, asked: Run) -> list[dict[str, Any]]:
    """Fills the disk again and again while one sweep runs; then lets it end."""
    sweep = Sweep(
        home, 4 + 8 * n_points, epochs=1, environment={"SPARSEFLEET_MIN_FREE_MIB": "1", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    )
    results: list[dict[str, Any]] = []
    for _ in range(n_points):
        done = sweep.row().counts.get("SUCCEEDED", 0)
        begun, driver = len(sweep.log), sweep.driver()
        sweep.wait_for(done + 1, driver)
        time.sleep(rng.uniform(0.0, 1.0))
        if driver.poll() is not None:  # it has ended, with the disk as it was
            break
        filler = fill(home, rng.choice([0, 0, 4096, 100_000, 400_000]))
        code = _ended(driver)
        half = half_written(home)
        filler.unlink()
        said = sweep.log[begun:]
        if code == 0 and sweep.row().counts.get("SUCCEEDED", 0) == sweep.row().counts["total"]:
            break  # it had ended before the disk was full
        results.append({"code": code, "said": code == EXIT and bool(SAID.search(said)), "half": half, "log": said[-1500:], "last": False})
        results[-1] |= {"violations": violations(home, sweep.id), "completed": False, "blamed": 0}
        asked.say(f"full after {done + 1} trials: exit {code}, {len(half)} half-written")
    if not results:
        return []
    driver = sweep.driver()
    code = _ended(driver)
    with read_ledger(home) as ledger:
        row = ledger.sweep(sweep.id)
    results[-1]["violations"] += violations(home, sweep.id)
    results[-1] |= {
        "completed": code == 0 and row.state == "DONE",
        "last_code": code,
        "last_log": sweep.log[-1500:],
        "last": True,
        "blamed": sum(row.counts.get(state, 0) for state in FAILED),
    }
    return results


def _ended(driver: subprocess.Popen[bytes]) -> int:
    try:
        return driver.wait(240)
    except subprocess.TimeoutExpired:
        os.killpg(driver.pid, signal.SIGKILL)
        return driver.wait()
