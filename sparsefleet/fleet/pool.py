"""The supervisors: as many as fit, replaced when they are lost, each with a job in hand and perhaps one behind it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sparsefleet.errors import BackendUnreachable
from sparsefleet.fleet.cluster import Cluster
from sparsefleet.fleet.describe import describe_nodes
from sparsefleet.fleet.drought import LIMIT_S, Drought
from sparsefleet.fleet.events import Event
from sparsefleet.fleet.refusals import brief
from sparsefleet.fleet.shape import Node, Shape
from sparsefleet.fleet.silence import LEASE_S
from sparsefleet.fleet.slots import Assignment, Message, Slot
from sparsefleet.fleet.supervisor import BEAT_S, Setup, Supervisor
from sparsefleet.fleet.utilisation import utilisation

_DEPTH = 2
"""Jobs at one supervisor: one in its child, one behind it or being stored."""
_START_LIMIT_S = 180.0
_MAX_LOST_IN_A_ROW = 10
_ONE_LOSS_S = 5.0
_READ_S = 5.0
"""A word that is too long to come with the news of it is fetched from its node; a frozen one never sends it."""
_LISTEN_ON_S = 600.0
"""How long a supervisor that was given up is still listened to, so that what it says late is told."""
_MOVE_S = 15.0
_SPARE_S = 10.0
"""How long a supervisor without work is kept: others may want its place, and to start one costs some seconds."""


class Pool:
    """Starts, feeds, hears and replaces supervisors.

    Args:
        limit: supervisors at once, whatever would fit; None for no limit.
        emit: is told of nodes that cannot be used.

    Attributes:
        accepted: True once a supervisor was: from then on what is wrong with a node is that node's problem.
    """

    def __init__(self, cluster: Cluster, setup: Setup, limit: int | None, emit: Callable[[Event], None] = lambda event: None) -> None:
        self._cluster, self._setup, self._limit, self._emit = cluster, setup, limit, emit
        self.accepted = False
        self.slots: list[Slot] = []
        self._given_up: list[tuple[Slot, Assignment, float]] = []
        self._lost_in_a_row = 0
        self._loss_on: dict[str, float] = {}
        self._start_at = 0.0
        self._drought = Drought(lambda: time.monotonic())

    # starting

    def adjust(self, needs: dict[Shape, int]) -> None:
        """Start supervisors for the shapes in need (trials per shape), and retire idle ones that stand in their way or that nobody needs.

        Raises:
            BackendUnreachable: the head of the cluster is lost; or there has been no node for anything in need for ``drought.LIMIT_S``.
        """
        self._cluster.listen()
        self._look_for_nodes(needs)
        claimed = self._cluster.view.claimed()
        for slot in [s for s in self.slots if s.node_id in claimed and not s.jobs and not s.whole]:
            self.kill(slot)
        self._give_back(needs)
        closed = self._cluster.closed()
        for shape, n in needs.items():
            have = [slot for slot in self.slots if slot.shape == shape]
            n_free = self._cluster.slots(shape) - sum(slot.node_id not in closed for slot in have)
            room = self._limit - len(self.slots) if self._limit else n
            for _ in range(min(n_free, n - len(have), room) if time.monotonic() >= self._start_at else 0):
                self._start(shape)
            if not any(slot.shape == shape and slot.ready for slot in self.slots):
                for slot in [s for s in self.slots if s.shape != shape and s.ready and not s.jobs and not needs.get(s.shape)]:
                    self.kill(slot)

    def _look_for_nodes(self, needs: dict[Shape, int]) -> None:
        """A node that was lost is waited for, within limits; other shapes go on meanwhile."""
        dry = next((shape for shape in needs if self._cluster.is_dry(shape)), None)
        self._drought.look(dry=dry is not None and not self.n_busy and all(map(self._cluster.is_dry, needs)))
        if dry is not None and self._drought.over:
            raise self._cluster.lack(dry, LIMIT_S)

    def _give_back(self, needs: dict[Shape, int]) -> None:
        """End what is more than needed: requests for a place at once, supervisors that have one when they have been idle for a while."""
        now = time.monotonic()
        for shape in {slot.shape for slot in self.slots}:
            mine = [s for s in self.slots if s.shape == shape and not s.whole]
            spare = [s for s in mine if not s.jobs and (s.place is not None or (s.ready and now - s.heard > _SPARE_S))]
            spare.sort(key=lambda s: (s.ready, s.heard))
            for slot in spare[: max(0, len(mine) - needs.get(shape, 0))]:
                self.kill(slot)

    def adjust_whole(self, shape: Shape) -> None:
        """Have one supervisor, alone on its node: it holds all CPUs of it, so that no trial of any sweep on this cluster runs beside it.

        Other sweeps are asked to leave the node; a node where that takes long is left for one that is free.

        Raises:
            UserError: no node could ever hold the shape.
            BackendUnreachable: as ``adjust``.
        """
        self._cluster.listen()
        self._cluster.require(shape)
        self._look_for_nodes({shape: 1})
        have = next((s for s in self.slots if s.whole and s.shape == shape), None)
        node = self._cluster.quietest(shape)
        free = node is not None and node.free.cpus >= node.total.cpus
        if free and have is not None and not have.ready and have.place is not None and time.monotonic() - have.born > _MOVE_S:
            self.kill(have)
            have = None
        for slot in [s for s in self.slots if s is not have]:
            self.kill(slot)
        if have is None and node is not None:
            self._cluster.view.claim(node.id)
            self._start_whole(shape, node)

    def describe(self, shapes: Iterable[Shape]) -> tuple[list[dict[str, Any]], list[str]]:
        """What the nodes would run, and what is said of those that do not tell; see ``describe_nodes``. Of a sweep that has begun nothing.

        Raises:
            UserError: no node could ever hold one of the shapes.
            BackendUnreachable: no node answers.
        """
        shapes = list(shapes)
        for shape in shapes:
            self._cluster.require(shape)
        return ([], []) if self.accepted else describe_nodes(self._cluster, self._setup, shapes)

    def _start(self, shape: Shape) -> None:
        self._launch(shape, self._cluster.options(shape))

    def _start_whole(self, shape: Shape, node: Node) -> None:
        place = NodeAffinitySchedulingStrategy(node.id, soft=False)
        options = {"num_cpus": node.total.cpus, "num_gpus": math.ceil(shape.gpus), "scheduling_strategy": place}
        slot = self._launch(shape, options)
        slot.whole, slot.node_id = True, node.id

    def _launch(self, shape: Shape, options: dict[str, Any]) -> Slot:
        actor_class: Any = ray.remote(max_restarts=0, max_task_retries=0)(Supervisor)  # every retry is the driver's
        actor = actor_class.options(**options, max_concurrency=_DEPTH).remote(self._setup)
        now = time.monotonic()
        self.slots.append(Slot(shape, actor, actor.place.remote(), actor.hello.remote(), now, held_up=now))
        return self.slots[-1]

    def greet(self) -> Iterator[tuple[Slot, dict[str, Any]]]:
        """Supervisors that are up and what they would run; the caller sets ``ready`` on those it accepts."""
        for slot in [s for s in self.slots if not s.ready and s.hello is not None]:
            if slot not in self.slots:
                continue  # its node was refused a moment ago
            self._place(slot)
            done, _ = ray.wait([slot.hello], timeout=0)
            if not done or slot.place is not None:
                if time.monotonic() - slot.held_up > _START_LIMIT_S and not any(s.ready for s in self.slots):
                    raise BackendUnreachable(f"no supervisor answered within {_START_LIMIT_S:.0f} s", fix="sparsefleet doctor")
                continue
            try:
                description = ray.get(slot.hello, timeout=_READ_S)
            except ray.exceptions.RayError as error:
                self.refuse(slot, brief(error), sure=getattr(error, "actor_init_failed", True))  # another death may be the node's
                continue
            slot.hello, slot.node, slot.heard = None, self._name(slot, description), time.monotonic()
            yield slot, {**description, "node": slot.node}
            if slot.ready:
                self.accepted = True
                self._cluster.refusals.forgive(slot.node_id)

    def has_another(self, slot: Slot) -> bool:
        """True if a node other than this supervisor's could do its work now."""
        closed = {*self._cluster.closed(), slot.node_id}
        return any(node.fits(slot.shape) for node in self._cluster.nodes() if node.id not in closed)

    def refuse(self, slot: Slot, reason: str, *, sure: bool = True) -> None:
        """No supervisor works on this one's node: it is left alone for a while, and other nodes get what would have started there.

        Raises:
            BackendUnreachable: the sweep has not begun, and none of the nodes works.
        """
        self.kill(slot)
        if slot.whole:
            self._cluster.view.claim(None)
        node = slot.node_id or self._cluster.view.place_of(slot.actor)
        name = next((n.name for n in self._cluster.nodes() if n.id == node), None)
        if name is None:  # lost with its node, or nobody knows where
            self._start_at = time.monotonic() + _ONE_LOSS_S
            self._count_loss(reason, node)
            return
        told = self._cluster.refusals.add(node, name, reason, sure=sure)
        if told is None:
            return
        for other in [s for s in self.slots if not s.ready and not s.whole and (s.node_id == node or s.place is not None)]:
            self.kill(other)  # what has no place yet could get one there
        if told:
            self._emit(Event("note", {"text": told}))
        error = None if self.accepted else self._cluster.refused(slot.shape)
        if error:
            raise error

    def _name(self, slot: Slot, description: dict[str, Any]) -> str:
        """What the node is called: as it was named for Ray, else its host's name. Ray names nodes by their addresses."""
        named = next((node.name for node in self._cluster.nodes() if node.id == slot.node_id), "")
        return str(description["node"]) if not named or named[0].isdigit() else named

    def _place(self, slot: Slot) -> None:
        """Learns where the supervisor's process is. Until it has one, others hold what it needs, which may take its time."""
        if slot.place is None or not ray.wait([slot.place], timeout=0)[0]:
            if slot.place is not None and not self._has_room(slot):
                slot.held_up = time.monotonic()
            return
        with suppress(ray.exceptions.RayError):  # its hello tells the same
            slot.node_id, slot.pid = ray.get(slot.place, timeout=_READ_S)
        slot.place, slot.held_up = None, time.monotonic()

    def _has_room(self, slot: Slot) -> bool:
        """True if a node that is open surely has what the supervisor waits for."""
        closed = self._cluster.closed()
        if slot.whole:
            return any(n.id == slot.node_id and n.free.cpus >= n.total.cpus for n in self._cluster.nodes())
        return any(node.has_room(slot.shape) for node in self._cluster.nodes() if node.id not in closed)

    # working

    def with_room(self, depth: int) -> list[Slot]:
        """Ready supervisors with fewer than ``depth`` jobs, the idle ones first; none on a node that someone waits to measure on."""
        claimed = self._cluster.view.claimed()
        room = (s for s in self.slots if s.ready and len(s.jobs) < depth and (s.whole or s.node_id not in claimed))
        return sorted(room, key=lambda s: len(s.jobs))

    def send(self, slot: Slot, job: dict[str, Any]) -> None:
        """Give the supervisor a job; it also forgets the folders of trials that are committed."""
        text = json.dumps({**job, "forget": [*slot.forget, *job.get("forget", [])]})
        slot.forget = []
        if not slot.jobs:
            slot.heard = time.monotonic()
        slot.jobs.append(Assignment(job, slot.actor.run.options(num_returns="streaming").remote(text)))

    def hear(self, wait_s: float) -> list[Message]:
        """What was said since the last call, waiting at most ``wait_s`` for the first word; losses included.

        Raises:
            BackendUnreachable: the head of the cluster is lost.
        """
        self._cluster.view.check()
        streams = {assignment.messages: slot for slot in self.slots for assignment in slot.jobs}
        starting = [slot.hello for slot in self.slots if slot.hello is not None]
        late = {assignment.messages: slot for slot, assignment, until in self._given_up if until > time.monotonic()}
        self._given_up = [known for known in self._given_up if known[1].messages in late]
        if not streams and not starting and not late:
            time.sleep(wait_s)
            return []
        everything = [*streams, *starting, *late]
        ready, _ = ray.wait(everything, num_returns=1, timeout=wait_s, fetch_local=False)
        if ready:
            ready, _ = ray.wait(everything, num_returns=len(everything), timeout=0, fetch_local=False)
        heard: list[Message] = []
        for stream in ready:
            slot = streams.get(stream)
            if slot in self.slots:
                heard += self._read(slot, stream)
            elif stream in late:
                heard += self._read_late(stream)
        return heard + self._silent()

    def _read_late(self, stream: Any) -> list[Message]:
        """What a supervisor says that was given up; only a result is told."""
        slot, assignment, _ = known = next(known for known in self._given_up if known[1].messages is stream)
        try:
            body = ray.get(next(stream), timeout=_READ_S)
        except (ray.exceptions.RayError, StopIteration):  # it has ended, as it was told to
            self._given_up.remove(known)
            return []
        return [Message(slot, assignment.job, "late", body)] if body["kind"] == "ended" else []

    def _read(self, slot: Slot, stream: Any) -> list[Message]:
        assignment = next((a for a in slot.jobs if a.messages is stream), None)
        if assignment is None:
            return []
        try:
            body = ray.get(next(stream), timeout=_READ_S)
        except (ray.exceptions.RayError, StopIteration) as error:
            self._count_loss(str(error), slot.node_id)
            return self._lose(slot, _brief(error))
        now = time.monotonic()
        slot.heard = now
        if body["kind"] == "started":
            assignment.started = now
        elif body["kind"] == "storing":
            assignment.storing = True
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
                self._suspect(slot, now)
                lost += self._lose(slot, f"no sign of life for {LEASE_S:.0f} s")
            elif overdue:
                lost += self._lose(slot, f"the time limit of {overdue[0].key[:12]} was not enforced")
        return lost

    def _suspect(self, slot: Slot, now: float) -> None:
        """The supervisor's node is silent unless another one there has spoken lately: what waits or starts there is called back."""
        if any(now - s.heard < 3 * BEAT_S for s in self.slots if s.node_id == slot.node_id and s.jobs):
            return
        self._cluster.silence.mark(slot.node_id, slot.pid)
        for other in [s for s in self.slots if not s.jobs and (s.node_id == slot.node_id or not s.ready)]:
            self.kill(other)

    def _lose(self, slot: Slot, reason: str) -> list[Message]:
        """The supervisor is given up. Its first job counts as run, one behind it only if its child had started."""
        self._given_up += [(slot, assignment, time.monotonic() + _LISTEN_ON_S) for assignment in slot.jobs]
        lost = [Message(slot, a.job, "lost", {"reason": reason, "ran": n == 0 or a.started is not None}) for n, a in enumerate(slot.jobs)]
        self.kill(slot)
        return lost

    def _count_loss(self, reason: str, node: str = "") -> None:
        """What is lost of a node at once is one loss: it may be the only node, and come back."""
        last = self._loss_on.get(node, -_ONE_LOSS_S)
        if node and time.monotonic() - last < _ONE_LOSS_S:
            return
        self._loss_on[node] = time.monotonic()
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
            self._end(slot.actor)

    def _end(self, actor: Any) -> None:
        if not self._cluster.lost:  # without a head they end by themselves
            with suppress(ray.exceptions.RayError):
                ray.kill(actor)

    def close(self) -> None:
        """End all."""
        if not self._cluster.lost:
            self._cluster.view.claim(None)
        for slot in list(self.slots):
            self.kill(slot)

    # telling

    @property
    def starting(self) -> bool:
        """True until the first supervisors are up; those that wait for what other sweeps hold are not waited for, once there is one."""
        waiting = [slot for slot in self.slots if not slot.ready]
        return bool(waiting or not self.slots) if not any(s.ready for s in self.slots) else any(slot.place is None for slot in waiting)

    @property
    def full(self) -> bool:
        """True if only the limit keeps more from running."""
        return self._limit is not None and len(self.slots) >= self._limit

    def places(self) -> tuple[list[Node], dict[str, str]]:
        """The nodes as Ray sees them, and by Ray's id why nothing starts on some of them."""
        return self._cluster.nodes(), self._cluster.why_closed()

    def event(self, sweep: str, waiting: list[dict[str, Any]]) -> Event:
        """Of kind ``fleet``."""
        waiting = [{**one, "why": one["why"] + self._drought.told()} for one in waiting]
        time_utc = datetime.now(timezone.utc).isoformat(timespec="seconds")
        nodes = utilisation(self._cluster.nodes(), self.slots, self._cluster.silence.nodes, self._cluster.refusals.closed())
        return Event("fleet", {"sweep": sweep, "time": time_utc, "nodes": nodes, "waiting": waiting})

    @property
    def n_busy(self) -> int:
        """Jobs out."""
        return sum(len(slot.jobs) for slot in self.slots)


def _brief(error: BaseException) -> str:
    """The first line of what Ray says; the rest repeats it."""
    text = str(error).strip()
    return f"supervisor lost: {text.splitlines()[0] if text else type(error).__name__}"
