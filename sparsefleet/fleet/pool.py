"""The supervisors: as many as fit, replaced when they are lost, each with a job in hand and perhaps one behind it."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sparsefleet.errors import BackendUnreachable
from sparsefleet.fleet.cluster import Cluster
from sparsefleet.fleet.jobs import overdue_s
from sparsefleet.fleet.queue import Shape
from sparsefleet.fleet.supervisor import Setup, Supervisor

LEASE_S = 30.0
"""A supervisor that says nothing for so long, by this process's monotonic clock, has lost its work."""
_DEPTH = 2
"""Jobs at one supervisor: one in its child, one behind it or being stored."""
_START_LIMIT_S = 180.0
_MAX_LOST_IN_A_ROW = 10


@dataclass
class Assignment:
    """One job at one supervisor."""

    job: dict[str, Any]
    messages: Any
    started: float | None = None

    @property
    def key(self) -> str:
        """Of its trial."""
        return str(self.job["key"])

    def overdue(self, now: float) -> bool:
        """True if its own node should have ended it long ago."""
        limit = overdue_s(self.job)
        return limit is not None and self.started is not None and now - self.started > limit


@dataclass
class Slot:
    """One supervisor. Ready once it has said hello and was accepted."""

    shape: Shape
    actor: Any
    hello: Any
    born: float
    node: str = "?"
    ready: bool = False
    heard: float = 0.0
    jobs: deque[Assignment] = field(default_factory=deque)
    forget: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Message:
    """What a supervisor said of a job; kind ``lost`` is the pool's own word for a supervisor that is gone."""

    slot: Slot
    job: dict[str, Any]
    kind: str
    body: dict[str, Any]


class Pool:
    """Starts, feeds, hears and replaces supervisors.

    Args:
        limit: supervisors at once, whatever would fit; None for no limit.
    """

    def __init__(self, cluster: Cluster, setup: Setup, limit: int | None) -> None:
        self._cluster, self._setup, self._limit = cluster, setup, limit
        self.slots: list[Slot] = []
        self._lost_in_a_row = 0

    # starting

    def wanted(self, shape: Shape, n_trials: int) -> int:
        """How many supervisors of this shape are worth having."""
        return min(self._cluster.slots(shape), n_trials, self._limit or n_trials)

    def adjust(self, needs: dict[Shape, int]) -> None:
        """Start supervisors for the shapes in need (trials per shape), and retire idle ones that stand in their way."""
        for shape, n in needs.items():
            have = sum(1 for slot in self.slots if slot.shape == shape)
            room = self._limit - len(self.slots) if self._limit else n
            for _ in range(min(self.wanted(shape, n) - have, room)):
                self._start(shape)
            if not any(slot.shape == shape and slot.ready for slot in self.slots):
                for slot in [s for s in self.slots if s.shape != shape and s.ready and not s.jobs and not needs.get(s.shape)]:
                    self.kill(slot)

    def describe_nodes(self, shapes: Iterable[Shape]) -> list[dict[str, Any]]:
        """What each node that could run one of the shapes would run; of a cluster of one node nothing, its first supervisor will tell.

        Raises:
            BackendUnreachable: a node does not answer.
        """
        wanted = list(shapes)
        nodes = [node for node in self._cluster.nodes() if any(node.fits(shape) for shape in wanted)]
        if len(nodes) < 2:
            return []
        actor_class: Any = ray.remote(max_restarts=0, max_task_retries=0)(Supervisor)
        actors = [
            actor_class.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(self._setup)
            for node in nodes
        ]
        try:
            told: list[dict[str, Any]] = ray.get([actor.hello.remote() for actor in actors], timeout=_START_LIMIT_S)
            return [{**description, "node": node.name} for node, description in zip(nodes, told, strict=True)]
        except ray.exceptions.RayError as error:
            cause = str(getattr(error, "cause", None) or error)
            raise BackendUnreachable("a node of the cluster does not say what it runs", cause=cause, fix="sparsefleet doctor") from error
        finally:
            for actor in actors:
                ray.kill(actor)

    def _start(self, shape: Shape) -> None:
        actor_class: Any = ray.remote(max_restarts=0, max_task_retries=0)(Supervisor)  # every retry is the driver's
        actor = actor_class.options(num_cpus=shape.cpus, num_gpus=shape.gpus, max_concurrency=_DEPTH).remote(self._setup)
        self.slots.append(Slot(shape, actor, actor.hello.remote(), time.monotonic()))

    def greet(self) -> Iterator[tuple[Slot, dict[str, Any]]]:
        """Supervisors that are up and what they would run; the caller sets ``ready`` on those it accepts."""
        for slot in [s for s in self.slots if not s.ready and s.hello is not None]:
            done, _ = ray.wait([slot.hello], timeout=0)
            if not done:
                if time.monotonic() - slot.born > _START_LIMIT_S and not any(s.ready for s in self.slots):
                    raise BackendUnreachable(f"no supervisor answered within {_START_LIMIT_S:.0f} s", fix="sparsefleet doctor")
                continue
            try:
                description = ray.get(slot.hello)
            except ray.exceptions.RayActorError as error:
                self._count_loss(str(error))
                self.kill(slot)
                continue
            except ray.exceptions.RayTaskError as error:
                raise BackendUnreachable("a supervisor cannot start", cause=str(error.cause or error)) from error
            slot.hello, slot.node, slot.heard = None, description["node"], time.monotonic()
            yield slot, description

    # working

    def with_room(self, depth: int) -> list[Slot]:
        """Ready supervisors with fewer than ``depth`` jobs, the idle ones first."""
        return sorted((s for s in self.slots if s.ready and len(s.jobs) < depth), key=lambda s: len(s.jobs))

    def send(self, slot: Slot, job: dict[str, Any]) -> None:
        """Give the supervisor a job; it also forgets the folders of trials that are committed."""
        text = json.dumps({**job, "forget": [*slot.forget, *job.get("forget", [])]})
        slot.forget = []
        if not slot.jobs:
            slot.heard = time.monotonic()
        slot.jobs.append(Assignment(job, slot.actor.run.options(num_returns="streaming").remote(text)))

    def hear(self, wait_s: float) -> list[Message]:
        """What was said since the last call, waiting at most ``wait_s`` for the first word; losses included."""
        streams = {assignment.messages: slot for slot in self.slots for assignment in slot.jobs}
        starting = [slot.hello for slot in self.slots if slot.hello is not None]
        if not streams and not starting:
            time.sleep(wait_s)
            return []
        everything = [*streams, *starting]
        ready, _ = ray.wait(everything, num_returns=1, timeout=wait_s, fetch_local=False)
        if ready:
            ready, _ = ray.wait(everything, num_returns=len(everything), timeout=0, fetch_local=False)
        heard: list[Message] = []
        for stream in ready:
            slot = streams.get(stream)
            if slot in self.slots:
                heard += self._read(slot, stream)
        return heard + self._silent()

    def _read(self, slot: Slot, stream: Any) -> list[Message]:
        assignment = next((a for a in slot.jobs if a.messages is stream), None)
        if assignment is None:
            return []
        try:
            body = ray.get(next(stream))
        except (ray.exceptions.RayError, StopIteration) as error:
            self._count_loss(str(error))
            return self._lose(slot, _brief(error))
        now = time.monotonic()
        slot.heard = now
        if body["kind"] == "started":
            assignment.started = now
        elif body["kind"] == "ended":
            slot.jobs.remove(assignment)
            self._lost_in_a_row = 0
        return [Message(slot, assignment.job, body["kind"], body)]

    def _silent(self) -> list[Message]:
        """Those whose lease ran out, or whose job is past any limit."""
        lost: list[Message] = []
        now = time.monotonic()
        for slot in [s for s in self.slots if s.jobs]:
            overdue = [a for a in slot.jobs if a.overdue(now)]
            if now - slot.heard > LEASE_S:
                lost += self._lose(slot, f"no sign of life for {LEASE_S:.0f} s")
            elif overdue:
                lost += self._lose(slot, f"the time limit of {overdue[0].key[:12]} was not enforced")
        return lost

    def _lose(self, slot: Slot, reason: str) -> list[Message]:
        """The supervisor is given up. Its first job counts as run, one behind it only if its child had started."""
        lost = [Message(slot, a.job, "lost", {"reason": reason, "ran": n == 0 or a.started is not None}) for n, a in enumerate(slot.jobs)]
        self.kill(slot)
        return lost

    def _count_loss(self, reason: str) -> None:
        self._lost_in_a_row += 1
        if self._lost_in_a_row > _MAX_LOST_IN_A_ROW and not any(slot.ready for slot in self.slots):
            raise BackendUnreachable(
                f"{self._lost_in_a_row} supervisors were lost one after the other", cause=reason, fix="sparsefleet doctor"
            )

    # ending

    def kill(self, slot: Slot) -> None:
        """End the supervisor now; its child goes with it."""
        if slot in self.slots:
            self.slots.remove(slot)
            with suppress(ray.exceptions.RayError):
                ray.kill(slot.actor)

    def close(self) -> None:
        """End all."""
        for slot in list(self.slots):
            self.kill(slot)

    @property
    def n_busy(self) -> int:
        """Jobs out."""
        return sum(len(slot.jobs) for slot in self.slots)


def _brief(error: BaseException) -> str:
    """The first line of what Ray says; the rest repeats it."""
    text = str(error).strip()
    return f"supervisor lost: {text.splitlines()[0] if text else type(error).__name__}"
