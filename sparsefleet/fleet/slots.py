"""One supervisor as the driver sees it: what it was given, what it said, and when."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from sparsefleet.fleet.jobs import overdue_s
from sparsefleet.fleet.shape import Shape


@dataclass
class Assignment:
    """One job at one supervisor."""

    job: dict[str, Any]
    messages: Any
    started: float | None = None
    storing: bool = False
    """Its child has ended in time; a slow store may take as long as it likes, while the supervisor gives signs of life."""

    @property
    def key(self) -> str:
        """Of its trial."""
        return str(self.job["key"])

    def overdue(self, now: float) -> bool:
        """True if its own node should have ended it long ago."""
        limit = overdue_s(self.job)
        return limit is not None and self.started is not None and not self.storing and now - self.started > limit


@dataclass
class Slot:
    """One supervisor. Ready once it has said hello and was accepted."""

    shape: Shape
    actor: Any
    place: Any
    hello: Any
    born: float
    node: str = "?"
    node_id: str = ""
    pid: int = 0
    whole: bool = False
    """Holds all CPUs of its node, for measuring."""
    ready: bool = False
    held_up: float = 0.0
    """When others last held what it needs: the time that it may take to start counts from then."""
    heard: float = 0.0
    jobs: deque[Assignment] = field(default_factory=deque)
    forget: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Message:
    """What a supervisor said of a job. Kind ``lost`` is the pool's own word for a supervisor that is gone, ``late`` for what such a one says."""

    slot: Slot
    job: dict[str, Any]
    kind: str
    body: dict[str, Any]
