"""The Ray cluster of one driver: an own one on this machine, or one that somebody keeps."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"  # whatever it was: also for a plugin that asks MLflow for something in a worker
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported
os.environ.setdefault("RAY_worker_niceness", "0")  # not 15: a supervisor that waits for its turn keeps its slot waiting

import ray

from sparsefleet.errors import BackendUnreachable, SparsefleetError, UserError
from sparsefleet.fleet.head import knock
from sparsefleet.fleet.own_ray import small_ray
from sparsefleet.fleet.refusals import Refusals
from sparsefleet.fleet.shape import Node, Shape
from sparsefleet.fleet.silence import Silence
from sparsefleet.fleet.token import protect_token
from sparsefleet.fleet.view import View
from sparsefleet.spawn import refuse_other_copies

_OBJECT_STORE_BYTES = 128 << 20
"""Results are records of some kilobytes; files go through the artifact store."""
_SHUTDOWN_S = 10.0
"""Ray without its head takes five seconds to end, and may never."""


class Cluster:
    """Connected while entered.

    Args:
        address: ``local`` starts a Ray that ends with this process, with the token authentication that Ray turns on for it.
        sweep: named in the command that goes on with it if the cluster is lost.

    Attributes:
        silence: nodes that Ray believes alive and that say nothing.
        refusals: nodes on which no supervisor starts.
    """

    def __init__(self, address: str, cpus: int | None, sweep: str = "SWEEP") -> None:
        self.address = address
        self._cpus = cpus
        self._sweep = sweep
        self._view: View | None = None
        self.silence = Silence()
        self.refusals = Refusals()
        self._fitted: set[Shape] = set()

    def __enter__(self) -> Cluster:
        refuse_other_copies(Path.cwd())
        _silence()
        own = self.address == "local"
        limits: dict[str, Any] = {"num_cpus": self._cpus or n_usable_cpus(), "object_store_memory": _OBJECT_STORE_BYTES} if own else {}
        try:
            knock(self.address)  # Ray would try for minutes
            with small_ray() if own else nullcontext():
                ray.init(
                    address=self.address,
                    include_dashboard=False if own else None,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **limits,
                )
        except Exception as error:  # Ray raises a bare one where a node does not start in time
            raise BackendUnreachable(f"Ray at {self.address!r} cannot be reached", cause=str(error), fix="sparsefleet doctor") from error
        protect_token()
        self._view = View(ray.get_runtime_context().gcs_address, self._sweep)
        self._view.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        lost = self.lost
        self.view.stop()
        _shut_down()
        if isinstance(error, ray.exceptions.RayError) or (
            lost and isinstance(error, Exception) and not isinstance(error, SparsefleetError)
        ):
            raise BackendUnreachable(
                "Ray stopped answering", cause=str(error), fix=f"sparsefleet resume {self._sweep} goes on where the ledger stands"
            ) from error

    @property
    def view(self) -> View:
        """What Ray says of its nodes."""
        assert self._view is not None, "the cluster is not entered"
        return self._view

    @property
    def lost(self) -> bool:
        """True once the head is gone: no call of Ray's would return."""
        return self._view is not None and self._view.lost

    @property
    def own_node(self) -> str:
        """Ray's id of the node that this process runs on."""
        return str(ray.get_runtime_context().get_node_id())

    def nodes(self) -> list[Node]:
        """Machines that Ray holds for alive.

        Raises:
            BackendUnreachable: the cluster's head is lost.
        """
        return self.view.nodes()

    def closed(self) -> frozenset[str]:
        """Nodes on which no trial may start: they are silent, cannot start any now, or someone waits to measure there."""
        return self.silence.nodes | self.view.claimed() | self.refusals.closed().keys()

    def why_closed(self) -> dict[str, str]:
        """``closed`` with the reason for each, as the end of a sentence on it."""
        claimed = dict.fromkeys(self.view.claimed(), "is kept for a measurement of another sweep")
        return {**claimed, **self.refusals.closed(), **dict.fromkeys(self.silence.nodes, "is silent")}

    def listen(self) -> None:
        """Takes in which nodes have come back, or are gone."""
        alive = [node.id for node in self.nodes()]
        self.silence.listen(alive)
        self.refusals.keep(alive)

    def require(self, shape: Shape) -> None:
        """Nothing, if a node could hold one trial of this shape, or once could: what was lost may come back.

        Raises:
            UserError: none could, as far as this driver has seen.
        """
        nodes = self.nodes()
        if any(node.fits(shape) for node in nodes):
            self._fitted.add(shape)
        elif shape not in self._fitted and not self.silence.nodes:
            raise UserError(
                f"no node has what a trial needs: {shape}",
                cause="; ".join(map(str, nodes)) or "none is alive",
                fix="resources: in the grid, or another cluster by --address",
            )

    def slots(self, shape: Shape) -> int:
        """How many trials of this shape run at once on the nodes that are open; 0 if all that could are closed for now, or gone."""
        closed = self.closed()
        return sum(node.fits(shape) for node in self.nodes() if node.id not in closed)

    def is_dry(self, shape: Shape) -> bool:
        """True if no node that answers and can start supervisors could hold one, whoever uses it now."""
        out = self.silence.nodes | self.refusals.reasons().keys()
        return not any(node.fits(shape) for node in self.nodes() if node.id not in out)

    def refused(self, shape: Shape) -> BackendUnreachable | None:
        """What to raise if a sweep cannot begin, since every node that answers and fits has failed more than once."""
        able = [node for node in self.nodes() if node.fits(shape) and node.id not in self.silence.nodes]
        if not able or not {node.id for node in able} <= self.refusals.given_up():
            return None
        why = self.refusals.reasons()
        return BackendUnreachable(
            "no supervisor can start", cause="; ".join(f"{node.name}: {why[node.id]}" for node in able), fix="sparsefleet doctor --cluster"
        )

    def lack(self, shape: Shape, waited_s: float) -> BackendUnreachable:
        """What to raise when no node has come for so long."""
        why = {**self.refusals.reasons(), **dict.fromkeys(self.silence.nodes, "it is silent")}
        return BackendUnreachable(
            f"for {waited_s / 60:.0f} min no node has had what a trial needs: {shape}",
            cause="; ".join(f"{node}: {why[node.id]}" if node.id in why else str(node) for node in self.nodes()) or "none is alive",
            fix=f"sparsefleet resume {self._sweep} goes on where the ledger stands, once there is one",
        )

    def options(self, shape: Shape) -> dict[str, Any]:
        """How Ray is asked for a place for one trial."""
        selector = dict(shape.labels)
        closed = self.closed()
        if closed:
            selector["ray.io/node-id"] = f"!in({','.join(sorted(closed))})"
        asked: dict[str, Any] = {"num_cpus": shape.cpus, "num_gpus": shape.gpus}
        if shape.memory_mib:
            asked["memory"] = int(shape.memory_mib) << 20
        if shape.accelerator:
            asked["accelerator_type"] = shape.accelerator
        return {**asked, "label_selector": selector} if selector else asked

    def quietest(self, shape: Shape) -> Node | None:
        """The node to measure this shape on: of those that hold it and answer, the one of which the others hold least."""
        out = self.silence.nodes | self.refusals.closed().keys()
        nodes = [node for node in self.nodes() if node.fits(shape) and node.id not in out]
        claimed = self.view.claimed()
        return min(nodes, key=lambda n: (n.id in claimed, n.total.cpus - n.free.cpus, n.id), default=None)


def _shut_down() -> None:
    """Gives up after some seconds: the thread of that name tells the command line how it may end."""
    thread = threading.Thread(target=ray.shutdown, daemon=True, name="ray-shutdown")
    thread.start()
    thread.join(_SHUTDOWN_S)
    if thread.is_alive():
        atexit.unregister(ray.shutdown)


def _silence() -> None:
    """Ray writes what its raylet has to say, e.g. of a worker that was killed, to stdout, whatever ``log_to_driver`` is. stdout is our data."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    worker: Any = ray._private.worker
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *_args, **_kwargs: None


def n_usable_cpus() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
