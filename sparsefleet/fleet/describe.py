"""What the nodes of a cluster would run, before anything is queued."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sparsefleet.errors import BackendUnreachable
from sparsefleet.fleet.cluster import Cluster
from sparsefleet.fleet.refusals import brief
from sparsefleet.fleet.shape import Node, Shape
from sparsefleet.fleet.silence import LEASE_S
from sparsefleet.fleet.supervisor import Setup, Supervisor

LIMIT_S = 180.0
_READ_S = 5.0


def describe_nodes(cluster: Cluster, setup: Setup, shapes: Iterable[Shape]) -> tuple[list[dict[str, Any]], list[str]]:
    """What each node that could run one of the shapes would run; of a cluster of one node nothing, its first supervisor will tell.

    The second list is what the user is told of the others. Nodes on which nothing starts within the lease, once something has elsewhere, count as
    silent from now on; those that answer and cannot say what they run are refused. Neither gets trials until it does, and then its first
    supervisor will tell.

    Raises:
        BackendUnreachable: no node says what it runs.
    """
    wanted = list(shapes)
    closed = cluster.view.claimed()  # nothing of ours beside a measurement; their first supervisors will tell
    nodes = [node for node in cluster.nodes() if node.id not in closed and any(node.fits(shape) for shape in wanted)]
    if len(nodes) < 2:
        return [], []
    actor_class: Any = ray.remote(max_restarts=0, max_task_retries=0)(Supervisor)
    actors = [
        actor_class.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(setup)
        for node in nodes
    ]
    places, hellos = [actor.place.remote() for actor in actors], [actor.hello.remote() for actor in actors]
    try:
        _wait(cluster, places, LIMIT_S, n=1)  # on a machine that is short of CPU every node takes its time
        _wait(cluster, places, LEASE_S)
        silent = [node for node, place in zip(nodes, places, strict=True) if not _is_there(place)]
        if len(silent) == len(nodes):
            raise BackendUnreachable(f"none of {_names(nodes)} answered within {LIMIT_S:.0f} s", fix="sparsefleet doctor --cluster")
        for node in silent:
            cluster.silence.mark(node.id)
        asked = [(node, hello) for node, hello in zip(nodes, hellos, strict=True) if node not in silent]
        _wait(cluster, [hello for _, hello in asked], LIMIT_S)
        told: list[dict[str, Any]] = []
        said = [f"{_names(silent)} did not answer within {LEASE_S:.0f} s: nothing is sent there before it does"] if silent else []
        wrong: list[str] = []
        for node, hello in asked:
            description = _read(hello)
            if isinstance(description, str):
                said.append(cluster.refusals.add(node.id, node.name, description) or "")
                wrong.append(f"{node.name}: {description}")
            else:
                told.append({**description, "node": node.name})
        if not told:
            raise BackendUnreachable("no node of the cluster says what it runs", cause="; ".join(wrong), fix="sparsefleet doctor --cluster")
        return told, list(filter(None, said))
    finally:
        for actor in actors:
            if not cluster.lost:
                with suppress(ray.exceptions.RayError):
                    ray.kill(actor)


def _wait(cluster: Cluster, answers: list[Any], limit_s: float, n: int | None = None) -> None:
    """Until ``n`` of them are there, by default all, or the limit is over."""
    n, until = n or len(answers), time.monotonic() + limit_s
    while time.monotonic() < until and len(ray.wait(answers, num_returns=n, timeout=1.0, fetch_local=False)[0]) < n:
        cluster.view.check()


def _is_there(answer: Any) -> bool:
    return bool(ray.wait([answer], timeout=0, fetch_local=False)[0])


def _read(hello: Any) -> dict[str, Any] | str:
    """What the node would run, or why it does not say."""
    if not _is_there(hello):
        return f"it did not answer within {LIMIT_S:.0f} s"
    try:
        found: dict[str, Any] = ray.get(hello, timeout=_READ_S)
        return found
    except ray.exceptions.RayError as error:
        return brief(error)


def _names(nodes: list[Node]) -> str:
    return ", ".join(node.name for node in nodes)
