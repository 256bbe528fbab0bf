"""A cluster of real Ray nodes on this machine, each with a raylet and workers of its own, and a sweep whose driver is attached to the first."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chaos.sweep import Sweep

RESOURCES = "resources: {cpus: 1}"
LIMIT_S = 500.0
_STORE_BYTES = 100 << 20
_INHERITED = os.environ.get("PYTHONPATH", "")


def python_path(site: Path | None) -> str:
    """For ``PYTHONPATH``: the folder before what this process has there."""
    return os.pathsep.join(filter(None, [str(site or ""), _INHERITED]))


class Nodes:
    """Ray nodes of one CPU; the first has the head and the driver.

    Args:
        sites: of every node the folder in which it looks for code before anywhere else; none for what this process finds.

    Attributes:
        names: of the nodes.
    """

    def __init__(self, sites: Sequence[Path | None] = (None, None, None)) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        self.names = [f"node-{n}" for n in range(len(sites))]
        self._seen: set[psutil.Process] = set()
        self._cluster: Any = Cluster()
        self._nodes: list[Any] = []
        try:
            for name, site in zip(self.names, sites, strict=True):
                os.environ["PYTHONPATH"] = python_path(site)
                self._nodes.append(
                    self._cluster.add_node(num_cpus=1, include_dashboard=False, node_name=name, object_store_memory=_STORE_BYTES)
                )
        except BaseException:
            self._cluster.shutdown()
            raise
        finally:
            os.environ["PYTHONPATH"] = _INHERITED

    @property
    def address(self) -> str:
        """For ``--address``."""
        return str(self._cluster.address)

    def raylet(self, name: str) -> psutil.Process:
        """Ray's own process of a node; everything else there is below it."""
        return psutil.Process(self._nodes[int(name.partition("-")[2])].all_processes["raylet"][0].process.pid)

    def processes(self, name: str) -> list[psutil.Process]:
        """The raylet, its workers, their fork servers and their trials."""
        raylet = self.raylet(name)
        found = [raylet, *raylet.children(recursive=True)]
        self._seen.update(found)
        return found

    def head(self) -> psutil.Process:
        """The global control store."""
        return psutil.Process(self._nodes[0].all_processes["gcs_server"][0].process.pid)

    def close(self) -> None:
        """End all, what is stopped or was cut off from its raylet with it: that is not below a raylet any more, and was seen there."""
        for name in self.names:
            below(lambda name=name: self.processes(name))  # type: ignore[misc]
        everything = [*self._seen, *below(lambda: [self.head()])]
        send_to(everything, signal.SIGCONT)
        self._cluster.shutdown()
        send_to(everything, signal.SIGKILL)


@contextmanager
def scene(n_trials: int, epochs: int) -> Iterator[tuple[Nodes, Sweep, subprocess.Popen[bytes]]]:
    """A cluster, a sweep on it that has ended some trials, and its driver."""
    with tempfile.TemporaryDirectory(prefix="sparsefleet-nodes-") as folder:
        sweep = Sweep(Path(folder), n_trials // 2, epochs=epochs, more=RESOURCES)
        with closing(Nodes()) as nodes, ending(sweep.driver("--address", nodes.address)) as driver:
            sweep.wait_for(3, driver, 240.0)
            if driver.poll() is not None:
                raise RuntimeError(f"the driver ended early: {sweep.log}")
            yield nodes, sweep, driver


@contextmanager
def ending(driver: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Killed afterwards, if it lives."""
    try:
        yield driver
    finally:
        if driver.poll() is None:
            driver.kill()
        driver.wait()


def is_ours(process: psutil.Process) -> bool:
    """Whether it is a supervisor, a fork server or a trial."""
    try:
        return process.name().startswith("ray::Supervisor") or "sparsefleet.fleet.forkserver" in process.cmdline()
    except psutil.Error:
        return False


def lifetime(processes: list[psutil.Process], limit_s: float = 120.0) -> float:
    """Seconds until all have ended."""
    begun = time.monotonic()
    while any(_lives(p) for p in processes) and time.monotonic() - begun < limit_s:
        time.sleep(0.1)
    return round(time.monotonic() - begun, 1)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def below(ask: Callable[[], list[psutil.Process]]) -> list[psutil.Process]:
    """What ``ask`` finds; nothing if the process that it looks below is gone."""
    try:
        return ask()
    except psutil.NoSuchProcess:
        return []


def send_to(processes: Iterable[psutil.Process], number: int) -> None:
    """Sends a signal to those that live."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
