"""What Ray says of the cluster, asked by a thread: a Ray that does not answer must not hold up the driver's loop."""

from __future__ import annotations

import re
import threading
import time
from typing import Any

import ray
from ray.experimental import internal_kv

from sparsefleet.errors import BackendUnreachable
from sparsefleet.fleet.head import SILENT_S, HeadWatch
from sparsefleet.fleet.shape import Amount, Node

_EVERY_S = 1.0
_PLACE_S = 2.0
_MIB = 1 << 20
_SPACE = b"sparsefleet"
_CLAIM = b"measuring/"


class View(threading.Thread):
    """The nodes that Ray holds for alive, some seconds old at most, and which of them someone wants for a measurement.

    Args:
        address: of the global control store.
        sweep: whose driver looks.
    """

    def __init__(self, address: str, sweep: str) -> None:
        super().__init__(daemon=True, name="cluster-view")
        self._head = HeadWatch(address)
        self._address, self._sweep = address, sweep
        self._ended = threading.Event()
        self._first = threading.Event()
        self._heard = time.monotonic()
        self._nodes: list[Node] = []
        self._claims: dict[bytes, tuple[bytes, float]] = {}
        self._mine: bytes | None = None
        self._problem: str | None = None

    def start(self) -> None:
        """Begin to look."""
        self._head.start()
        super().start()

    def run(self) -> None:
        """The thread."""
        n = 0
        while not self._ended.is_set():
            try:
                self._nodes = _nodes()
                if self._mine:
                    n += 1
                    internal_kv._internal_kv_put(self._mine, b"%d" % n, namespace=_SPACE)
                self._read_claims()
                self._heard, self._problem = time.monotonic(), None
            except Exception as error:  # noqa: BLE001  Ray raises what it likes; whoever reads the view is told
                self._problem = f"{type(error).__name__}: {error}"
            self._first.set()
            self._ended.wait(_EVERY_S)

    def _read_claims(self) -> None:
        """A claim counts while its number grows: clocks of other machines are not believed."""
        now = time.monotonic()
        known = self._claims
        self._claims = {}
        for key in internal_kv._internal_kv_list(_CLAIM, namespace=_SPACE):
            value = internal_kv._internal_kv_get(key, namespace=_SPACE) or b""
            before = known.get(key)
            self._claims[key] = before if before and before[0] == value else (value, now)

    def nodes(self) -> list[Node]:
        """Alive ones, as Ray believes.

        Raises:
            BackendUnreachable: the head of the cluster is gone, or Ray has not answered for ``SILENT_S`` seconds.
        """
        self._first.wait(SILENT_S)
        self.check()
        return self._nodes

    def check(self) -> None:
        """Nothing, if the cluster's head is there.

        Raises:
            BackendUnreachable: as ``nodes``.
        """
        lost = self._head.lost
        if lost is None and time.monotonic() - self._heard > SILENT_S:
            lost = self._problem or f"no answer for {SILENT_S:.0f} s"
        if lost:
            raise BackendUnreachable(
                f"the head of the Ray cluster at {self._address} is lost",
                cause=f"{lost}; what was committed is in the ledger",
                fix=f"sparsefleet resume {self._sweep}, with the --address of another cluster if this one does not come back",
            )

    @property
    def lost(self) -> bool:
        """True once the head is gone: nothing of Ray's may be called any more."""
        return self._head.lost is not None or time.monotonic() - self._heard > SILENT_S

    def claim(self, node: str | None) -> None:
        """Ask the other sweeps on this cluster to leave a node, by Ray's id, because something is to be measured there, and as long as it is; None ends it."""
        before, self._mine = self._mine, _CLAIM + f"{node}/{ray.get_runtime_context().get_job_id()}".encode() if node else None
        if before and before != self._mine and not self.lost:
            internal_kv._internal_kv_del(before, namespace=_SPACE)

    def claimed(self) -> set[str]:
        """Nodes that another sweep waits for to measure there, or where it does."""
        now = time.monotonic()
        return {re.split("/", key.decode())[1] for key, (_, since) in self._claims.items() if now - since < SILENT_S and key != self._mine}

    def place_of(self, actor: Any) -> str:
        """Ray's id of the node where an actor's process was begun, also of one that failed at that; empty if Ray does not say at once."""
        found: list[str] = []
        asking = threading.Thread(target=_ask_place, args=(actor, found), daemon=True)
        asking.start()
        asking.join(_PLACE_S)
        return found[0] if found else ""

    def stop(self) -> None:
        """End it."""
        self.claim(None)
        self._ended.set()
        self._head.stop()


def _ask_place(actor: Any, found: list[str]) -> None:
    try:
        found.append(str(ray._private.state.actors(actor._actor_id.hex())["Address"]["NodeID"]))
    except Exception:  # noqa: BLE001  Ray raises what it likes; then nobody knows
        found.append("")


def _nodes() -> list[Node]:
    free = ray._private.state.available_resources_per_node()  # type: ignore[no-untyped-call]
    return [_node(node, free.get(node["NodeID"], {})) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _node(told: dict[str, Any], free: dict[str, float]) -> Node:
    has = told["Resources"]
    return Node(
        told["NodeID"],
        told["NodeName"],
        _amount(has),
        _amount(free),
        tuple(name.partition(":")[2] for name in has if name.startswith("accelerator_type:")),
        dict(told.get("Labels") or {}),
    )


def _amount(resources: dict[str, float]) -> Amount:
    return Amount(resources.get("CPU", 0.0), resources.get("GPU", 0.0), resources.get("memory", 0.0) / _MIB)
