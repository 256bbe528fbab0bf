"""Two drivers that know nothing of each other, with homes, Rays and temporary folders of their own, measure on one machine: one at a time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fleet_sweeps import enter

from sparsefleet.ledger import read_ledger
from sparsefleet.measure.lease import device_lease

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

GRID = """name: turns
train: {epochs: 1, batch_size: 64}
resources: {cpus: 1}
axes:
  method: [{rewirer: static, layer: csr}]
  density: [0.2]
"""
DRIVER = """
import json, sys
from pathlib import Path
from sparsefleet.fleet.driver import DriverSettings, submit
measure = {"level": "screen", "batch_sizes": [64], "ops": ["forward"], "baselines": ["dense_eager"]}
def tell(event):
    print(json.dumps([event.kind, event.data]), flush=True)
submit(Path(sys.argv[1]), sys.argv[2], DriverSettings(data_root=Path("data"), cpus=1, measure=measure), tell)
"""


class Driver:
    """One of them; what it tells why it waits is collected."""

    def __init__(self, folder: Path) -> None:
        home = folder / "home"
        home.mkdir(parents=True)
        self.home, self.sweep = home, enter(home, GRID)
        self.waits: list[str] = []
        env = {**os.environ, "SPARSEFLEET_HOME": str(home), "TMPDIR": str(folder)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(home), self.sweep], stdout=subprocess.PIPE, text=True, env=env, cwd=folder
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            kind, data = json.loads(line)
            self.waits += [one["why"] for one in data["waiting"]] if kind == "fleet" else []

    def waits_for(self) -> set[int]:
        """The processes whose measurements it waited for."""
        return {int(pid) for why in self.waits for pid in re.findall(r"the measurement waits for cpu: process (\d+) measures", why)}


def test_two_drivers_on_one_machine_take_turns_and_say_so() -> None:
    drivers: list[Driver] = []
    with tempfile.TemporaryDirectory(prefix="sf-", dir="/tmp", ignore_cleanup_errors=True) as name:  # a short path: Ray's sockets lie there
        try:
            with device_lease("cpu", 60.0):
                for one in ("a", "b"):
                    drivers.append(Driver(Path(name) / one))
                    _until(lambda: os.getpid() in drivers[-1].waits_for())  # it has trained, and finds that this process measures
                assert all(driver.process.poll() is None for driver in drivers)
            _until(lambda: all(driver.process.poll() is not None for driver in drivers))
            assert [driver.process.returncode for driver in drivers] == [0, 0]
            assert any(driver.waits_for() - {os.getpid()} for driver in drivers), "neither waited for the other"
            assert all(read_ledger(driver.home).timings(driver.sweep) for driver in drivers)
        finally:
            for driver in drivers:
                driver.process.terminate()
            slow = [driver for driver in drivers if not _ends(driver.process)]
            for driver in slow:
                driver.process.kill()
                driver.process.wait()
    assert not slow, "a driver did not end within a minute of SIGTERM"


def _ends(process: subprocess.Popen[str]) -> bool:
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        return False
    return True


def _until(happens: Callable[[], bool]) -> None:
    end = time.monotonic() + 200
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.1)
