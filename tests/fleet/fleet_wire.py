"""A pool whose supervisors do what a test says: Ray's few calls that it makes are answered here, the nodes are given, and time is told."""

from __future__ import annotations

import time
from typing import Any

import ray

from sparsefleet.fleet.cluster import Cluster
from sparsefleet.fleet.events import Event
from sparsefleet.fleet.pool import Pool
from sparsefleet.fleet.refusals import Refusals
from sparsefleet.fleet.shape import Amount, Node, Shape
from sparsefleet.fleet.slots import Slot
from sparsefleet.fleet.supervisor import Setup

CPU, GPU = Shape(1, 0), Shape(1, 1)


def node(name: str, cpus: float = 4, gpus: float = 0, free: Amount | None = None) -> Node:
    """Of which all is free unless told otherwise."""
    has = Amount(cpus, gpus, 1 << 20)
    return Node(f"id-{name}", name, has, free or has)


class Ref:
    """An answer that is there once ``value`` is set; an exception is raised where it is read."""

    value: Any = None

    def __next__(self) -> Ref:
        """The next word of a stream."""
        return self


class _Method:
    def remote(self, *_: Any) -> Ref:
        return Ref()

    def options(self, **_: Any) -> _Method:
        return self


class _Actor:
    def __init__(self, options: dict[str, Any]) -> None:
        self.options, self.place, self.hello, self.run = options, _Method(), _Method(), _Method()


class _Actors:
    def options(self, **options: Any) -> Any:
        actor = _Actor(options)
        return type("Options", (), {"remote": staticmethod(lambda _: actor)})


class Machines:
    """In place of the thread that asks Ray for its nodes."""

    lost = False

    def __init__(self, *nodes: Node) -> None:
        self.alive = list(nodes)
        self.wanted: set[str] = set()
        self.places: dict[Any, str] = {}

    def nodes(self) -> list[Node]:
        """As the test has set them."""
        return self.alive

    def claimed(self) -> set[str]:
        """As the test has set them."""
        return self.wanted

    def claim(self, node: str | None) -> None:
        """Nobody else is there to be told."""

    def place_of(self, actor: Any) -> str:
        """As the test has set it."""
        return self.places.get(actor, "")

    def check(self) -> None:
        """The head is always there."""


class Wire:
    """Stands where the pool looks for ``ray`` and for the time."""

    exceptions = ray.exceptions

    def __init__(self, *nodes: Node, limit: int | None = None) -> None:
        self.now = time.monotonic()
        self.machines = Machines(*nodes)
        self.cluster = Cluster("wire", None, "sweep-1")
        self.cluster._view = self.machines
        self.cluster.refusals = Refusals(self.monotonic)
        self.told: list[Event] = []
        self.pool = Pool(self.cluster, Setup("home", "store"), limit, self.told.append)
        self.killed: list[Any] = []

    def monotonic(self) -> float:
        """The test's clock."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds

    def remote(self, **_: Any) -> Any:
        """A class of actors."""
        return lambda _: _Actors()

    def wait(self, refs: list[Ref], **_: Any) -> tuple[list[Ref], list[Ref]]:
        """Which answers are there."""
        done = [ref for ref in refs if ref.value is not None]
        return done, [ref for ref in refs if ref.value is None]

    def get(self, ref: Ref, **_: Any) -> Any:
        """The answer."""
        if isinstance(ref.value, Exception):
            raise ref.value
        return ref.value

    def kill(self, actor: Any) -> None:
        """Ends it."""
        self.killed.append(actor)

    # what a test does

    def place(self, slot: Slot, name: str) -> None:
        """The supervisor's process is on that node."""
        slot.place.value = (f"id-{name}", 1)

    def up(self, slot: Slot, name: str) -> None:
        """The supervisor is there, and accepted."""
        self.place(slot, name)
        slot.hello.value = {"node": name}
        for one, _ in self.pool.greet():
            one.ready = True

    def adjust(self, needs: dict[Shape, int], after_s: float = 0.0) -> dict[Shape, int]:
        """What the pool has for each shape, some time later."""
        self.now += after_s
        self.pool.adjust(needs)
        shapes = [slot.shape for slot in self.pool.slots]
        return {shape: shapes.count(shape) for shape in shapes}
