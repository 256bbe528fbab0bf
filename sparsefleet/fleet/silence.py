"""Nodes that say nothing while Ray holds them for alive, which it does for a minute: nothing new may be placed there until they answer again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

LEASE_S = 30.0
"""Who says nothing for so long, by this process's monotonic clock, has lost its work; a node that does not answer for so long gets none."""
_AGAIN_S = 2.0
_NAME = b"ray::Supervisor"


class Silence:
    """Which nodes are silent. Each is asked to run a tiny task: when it has, the node is back, and rid of the supervisors given up there."""

    def __init__(self) -> None:
        self._given_up: dict[str, set[int]] = {}
        self._asked: dict[str, tuple[Any, float]] = {}

    @property
    def nodes(self) -> frozenset[str]:
        """Ray's ids of the silent ones."""
        return frozenset(self._given_up)

    def mark(self, node: str, *supervisors: int) -> None:
        """Nothing there has said a word; ``supervisors``, by their process ids, were given up."""
        self._given_up.setdefault(node, set()).update(supervisors)

    def listen(self, alive: Iterable[str]) -> list[str]:
        """Nodes that are silent no longer: they answered, or Ray has given them up too."""
        living, back = set(alive), []
        for node in list(self._given_up):
            if node not in living or self._answered(node):
                del self._given_up[node]
                self._asked.pop(node, None)
                back.append(node)
        return back

    def _answered(self, node: str) -> bool:
        ref, since = self._asked.get(node, (None, -_AGAIN_S))
        if ref is None:
            if time.monotonic() - since > _AGAIN_S:
                place = NodeAffinitySchedulingStrategy(node, soft=False)
                task: Any = ray.remote(_end)
                self._asked[node] = (
                    task.options(num_cpus=0, max_retries=0, scheduling_strategy=place).remote(sorted(self._given_up[node])),
                    time.monotonic(),
                )
            return False
        done, _ = ray.wait([ref], timeout=0, fetch_local=False)
        if not done:
            return False
        try:
            ray.get(ref, timeout=1.0)
            return True
        except ray.exceptions.RayError:
            self._asked[node] = (None, time.monotonic())
            return False


def _end(pids: list[int]) -> None:
    """SIGKILL those of the processes that are supervisors: what waited in a stopped one's queue is not known to arrive."""
    for pid in pids:
        with suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(_NAME):
                os.kill(pid, signal.SIGKILL)
