"""Small sweeps on the digits data, and a driver in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from sparsefleet.fleet.driver import DriverSettings, Event
from sparsefleet.fleet.enqueue import enqueue
from sparsefleet.grid.load import load_grid
from sparsefleet.registry import catalog

BASE = """
dataset: digits
model: {mlp: {hidden: [32]}}
optimizer: {sgd: {lr: 0.1, momentum: 0.9}}
measure: {level: none}
"""

DRIVER = """
import json, sys
from pathlib import Path
from sparsefleet.fleet.driver import DriverSettings, submit
home, sweep, data = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
def tell(event):
    print(json.dumps([event.kind, event.data]), flush=True)
row = submit(home, sweep, DriverSettings(data_root=data), tell)
print(json.dumps(["end", {"state": row.state, "counts": row.counts, "modules": [m for m in ("ray", "torch") if m in sys.modules]}]), flush=True)
"""


def enter(home: Path, text: str) -> str:
    """The sweep of a grid given as text, without control arms unless it names some; entered in the ledger, not run."""
    path = home / "grid.yaml"
    path.write_text(BASE + text + ("" if "control_arms" in text else "\ncontrol_arms: []\n"))
    plugins = catalog()
    return enqueue(load_grid(str(path), catalog=plugins), plugins, home, home / "data")


def settings(home: Path, **kwargs: Any) -> DriverSettings:
    """For a driver in this process."""
    return DriverSettings(data_root=home / "data", **kwargs)


class Told:
    """Collects events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        json.dumps(event.data)
        self.events.append(event)

    def states(self, key: str) -> list[str]:
        return [e.data["state"] for e in self.events if e.kind == "trial" and e.data["key"] == key]


def start_driver(home: Path, sweep: str) -> subprocess.Popen[str]:
    """Drives the sweep in a process of its own; a line of JSON per event."""
    arguments = [sys.executable, "-c", DRIVER, str(home), sweep, str(home / "data")]
    env = {**os.environ, "SPARSEFLEET_HOME": str(home)}
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=env, start_new_session=True)


def read_until(driver: subprocess.Popen[str], kind: str, **wanted: Any) -> dict[str, Any]:
    """The next event of this kind with these values; fails the test if the driver ends before."""
    for line in driver.stdout:
        told, data = json.loads(line)
        if told == kind and all(data.get(name) == value for name, value in wanted.items()):
            return data
    raise AssertionError(f"the driver ended without {kind} {wanted}")
