"""The Ray cluster of one driver: an own one on this machine, or one that somebody keeps."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported
os.environ.setdefault("RAY_worker_niceness", "0")  # not 15: a supervisor that waits for its turn keeps its slot waiting

import ray

from sparsefleet.errors import BackendUnreachable, UserError
from sparsefleet.fleet.queue import Shape
from sparsefleet.fleet.token import protect_token
from sparsefleet.spawn import refuse_other_copies

_OBJECT_STORE_BYTES = 128 << 20
"""Results are records of some kilobytes; files go through the artifact store."""
_NODES_EVERY_S = 1.0
"""Asking Ray for its nodes takes some milliseconds, and a short trial not much more."""


@dataclass(frozen=True)
class Node:
    """One machine, with all it has."""

    id: str
    name: str
    cpus: float
    gpus: float

    def fits(self, shape: Shape) -> int:
        """How many trials of this shape the empty node holds."""
        by_cpu = int(self.cpus // shape.cpus) if shape.cpus else 1 << 16
        by_gpu = int(self.gpus // shape.gpus) if shape.gpus else 1 << 16
        return min(by_cpu, by_gpu)


class Cluster:
    """Connected while entered.

    Args:
        address: ``local`` starts a Ray that ends with this process, with the token authentication that Ray turns on for it.
    """

    def __init__(self, address: str, cpus: int | None) -> None:
        self.address = address
        self._cpus = cpus
        self._nodes: list[Node] = []
        self._ask_at = 0.0

    def __enter__(self) -> Cluster:
        refuse_other_copies(Path.cwd())
        _silence()
        own = self.address == "local"
        limits: dict[str, Any] = {"num_cpus": self._cpus or n_usable_cpus(), "object_store_memory": _OBJECT_STORE_BYTES} if own else {}
        try:
            ray.init(
                address=self.address, include_dashboard=False if own else None, log_to_driver=False, logging_level=logging.ERROR, **limits
            )
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
            raise BackendUnreachable(f"Ray at {self.address!r} cannot be reached", cause=str(error), fix="sparsefleet doctor") from error
        protect_token()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        ray.shutdown()
        if isinstance(error, ray.exceptions.RayError):
            raise BackendUnreachable(
                "Ray stopped answering", cause=str(error), fix="sparsefleet resume goes on where the ledger stands"
            ) from error

    @property
    def own_node(self) -> str:
        """Ray's id of the node that this process runs on."""
        return str(ray.get_runtime_context().get_node_id())

    def nodes(self) -> list[Node]:
        """Machines that were alive within the last second."""
        if time.monotonic() < self._ask_at:
            return self._nodes
        self._nodes = [
            Node(node["NodeID"], node["NodeName"], node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
            for node in ray.nodes()  # type: ignore[no-untyped-call]
            if node["Alive"]
        ]
        self._ask_at = time.monotonic() + _NODES_EVERY_S
        return self._nodes

    def slots(self, shape: Shape) -> int:
        """How many trials of this shape run at once.

        Raises:
            UserError: not even one.
        """
        nodes = self.nodes()
        n = sum(node.fits(shape) for node in nodes)
        if n == 0:
            largest = ", ".join(f"{node.name}: {node.cpus:g} CPUs, {node.gpus:g} GPUs" for node in nodes) or "none is alive"
            raise UserError(
                f"a trial needs {shape.cpus:g} CPUs and {shape.gpus:g} GPUs, and no node has them",
                cause=largest,
                fix="resources: in the grid",
            )
        return n


def _silence() -> None:
    """Ray writes what its raylet has to say, e.g. of a worker that was killed, to stdout, whatever ``log_to_driver`` is. stdout is our data."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    worker: Any = ray._private.worker
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *_args, **_kwargs: None


def n_usable_cpus() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
