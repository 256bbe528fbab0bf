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
from sparsefleet.fleet.shape import Node, Shape
from sparsefleet.fleet.silence import LEASE_S
from sparsefleet.fleet.supervisor import Setup, Supervisor

LIMIT_S = 180.0


def describe_nodes(cluster: Cluster, setup: Setup, shapes: Iterable[Shape]) -> tuple[list[dict[str, Any]], list[str]]:
    """What each node that could run one of the shapes would run; of a cluster of one node nothing, its first supervisor will tell.

    The second list names nodes on which nothing starts within the lease, once something has elsewhere: they count as silent from now on, and
    get no trials. When one of them answers, its first supervisor will tell.

    Raises:
        BackendUnreachable: no node answers, or one that does cannot say what it runs.
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
        mute = [node for node, hello in asked if not _is_there(hello)]
        if mute:
            raise BackendUnreachable(f"{_names(mute)} did not answer within {LIMIT_S:.0f} s", fix="sparsefleet doctor --cluster")
        return [{**ray.get(hello, timeout=LIMIT_S), "node": node.name} for node, hello in asked], [node.name for node in silent]
    except ray.exceptions.RayError as error:
        cause = str(getattr(error, "cause", None) or error)
        raise BackendUnreachable("a node of the cluster does not say what it runs", cause=cause, fix="sparsefleet doctor") from error
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


def _names(nodes: list[Node]) -> str:
    return ", ".join(node.name for node in nodes)
