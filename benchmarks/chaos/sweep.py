"""A sweep of short trials in a home of its own, and its driver as a process that can be killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from sparsefleet.ledger import TrialRow, read_ledger
from sparsefleet.ledger.rows import SweepRow
from sparsefleet.spawn import module_command

GRID = """
name: chaos
dataset: digits
model: {{mlp: {{hidden: [64]}}}}
optimizer: {{sgd: {{lr: 0.1, momentum: 0.9}}}}
train: {{epochs: {epochs}, batch_size: 32}}
seeds: {seeds}
control_arms: []
axes:
  density: [0.1]
  method: [{methods}]
{measure}
{more}
"""


_TIE = (
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0);"
    " os.getppid() == int(sys.argv[1]) or os._exit(1); os.execv(sys.argv[2], sys.argv[2:])"
)


def tied(command: Sequence[str]) -> list[str]:
    """The command as one that is killed when this process ends, however that ends, although it has a session of its own; its id stays the same."""
    return [sys.executable, "-S", "-c", _TIE, str(os.getpid()), *command]


class Sweep:
    """The trials are in the ledger of ``home`` once this is made; nothing runs yet.

    Args:
        n_seeds: of every method and of the dense twin, so that one method makes ``2 n_seeds`` trials.
        methods: YAML of one or more methods, separated by commas.
        more: further lines of the grid, such as ``resources: {cpus: 1}``.
        measure: the grid's line that says what is timed.
        plugins: one-file plugins that the sweep uses.
        environment: on top of this process's, for whatever is run here.
    """

    def __init__(
        self,
        home: Path,
        n_seeds: int,
        *,
        epochs: int = 3,
        methods: str = "{rewirer: set}",
        more: str = "",
        measure: str = "measure: {level: none}",
        plugins: Sequence[Path] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.home = home
        named = {"SPARSEFLEET_PLUGINS": os.pathsep.join(map(str, plugins))} if plugins else {}
        own = {"SPARSEFLEET_HOME": str(home), "SPARSEFLEET_DATA": str(home / "data"), "SPARSEFLEET_PICTURES": "off"}
        self.environment = {**os.environ, **own, **named, **(environment or {})}
        self.grid = home / "grid.yaml"
        self.grid.write_text(GRID.format(epochs=epochs, seeds=n_seeds, methods=methods, more=more, measure=measure))
        self.id = self._enqueued()

    def _enqueued(self) -> str:
        code = (
            "import sys; from pathlib import Path; from sparsefleet.registry import catalog; from sparsefleet.grid.load import load_grid;"
            " from sparsefleet.fleet.enqueue import enqueue; home = Path(sys.argv[1]); plugins = catalog();"
            " print(enqueue(load_grid(sys.argv[2], catalog=plugins), plugins, home, home / 'data'))"
        )
        command = [sys.executable, "-c", code, str(self.home), str(self.grid)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True)
        return done.stdout.strip().splitlines()[-1]

    def driver(self, *flags: str) -> subprocess.Popen[bytes]:
        """``sparsefleet resume`` in a session of its own; what it says goes to ``driver.log`` in the home."""
        with (self.home / "driver.log").open("ab") as log:
            return subprocess.Popen(
                tied(module_command("sparsefleet.cli", "resume", self.id, *flags)),
                env=self.environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def rows(self) -> list[TrialRow]:
        """The trials with their records and attempts."""
        with read_ledger(self.home) as ledger:
            return list(ledger.trials(self.id))

    def row(self) -> SweepRow:
        """The sweep as it stands."""
        with read_ledger(self.home) as ledger:
            return ledger.sweep(self.id)

    def wait_for(self, n_done: int, driver: subprocess.Popen[bytes], limit_s: float = 120.0) -> None:
        """Until so many trials have succeeded, the driver has ended, or the limit is over."""
        until = time.monotonic() + limit_s
        while time.monotonic() < until and driver.poll() is None and self.row().counts.get("SUCCEEDED", 0) < n_done:
            time.sleep(0.1)

    @property
    def log(self) -> str:
        """What the drivers said."""
        path = self.home / "driver.log"
        return path.read_text(errors="replace") if path.exists() else ""


def processes_below(pid: int, beginning: str = "") -> list[psutil.Process]:
    """Living descendants whose name begins so; a busy supervisor is called ``ray::Supervisor.run``."""
    try:
        return [p for p in psutil.Process(pid).children(recursive=True) if name_of(p).startswith(beginning)]
    except psutil.NoSuchProcess:
        return []


def name_of(process: psutil.Process) -> str:
    """Its name; nothing if it has ended."""
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


def left_behind(home: Path) -> list[psutil.Process]:
    """Living processes that were started for this home: its path stands in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SPARSEFLEET_HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def gone(home: Path, within_s: float = 5.0) -> list[psutil.Process]:
    """Processes of this home that still live after some seconds; those of MLflow's upload are not counted."""
    until = time.monotonic() + within_s
    while True:
        found = [p for p in left_behind(home) if "upload" not in command_of(p)]
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.1)


def command_of(process: psutil.Process) -> str:
    """Its command line; nothing if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
