"""Ctrl-C reaches a driver that is stuck in somebody's C code, and leaves nothing of it behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sparsefleet.fleet.interrupts import Interrupts

STUCK = """
import ctypes, subprocess, sys, time
from pathlib import Path
from sparsefleet.fleet import interrupts
interrupts._START_S = interrupts._SOON_S = float(sys.argv[2])
spared = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
(Path(sys.argv[1]) / "locks").mkdir()
with interrupts.Interrupts(Path(sys.argv[1]), "s", lambda: [spared.pid]):
    child = subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60"])
    print(spared.pid, child.pid, flush=True)
    while True:
        ctypes.CDLL(None).sleep(60)
"""


@pytest.mark.parametrize(("soon_s", "n_signals"), [(0.4, 1), (60, 2)])
def test_a_stuck_driver_ends_in_time_with_all_below_it_but_the_spared(tmp_path: Path, soon_s: float, n_signals: int) -> None:
    driver = subprocess.Popen([sys.executable, "-c", STUCK, str(tmp_path), str(soon_s)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    spared, child = (psutil.Process(int(pid)) for pid in driver.stdout.readline().split())
    family = [child, *child.children(recursive=True)]
    try:
        for _ in range(n_signals):
            driver.send_signal(signal.SIGINT)
            time.sleep(0.1)
        begun = time.monotonic()
        assert driver.wait(30) == 130
        assert time.monotonic() - begun < 2.0
        assert b"interrupted" in driver.stderr.read()
        assert not psutil.wait_procs(family, timeout=5)[1]
        assert spared.status() != psutil.STATUS_ZOMBIE
    finally:
        spared.kill()
        driver.stdout.close()
        driver.stderr.close()


def test_a_signal_is_counted_and_what_was_there_before_comes_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    (tmp_path / "locks").mkdir()
    with Interrupts(tmp_path, "s") as interrupts:
        assert not interrupts.stopping
        signal.raise_signal(signal.SIGINT)
        until = time.monotonic() + 5
        while not interrupts.stopping and time.monotonic() < until:
            time.sleep(0.01)
        assert interrupts.n_signals == 1
    assert signal.getsignal(signal.SIGINT) is before
