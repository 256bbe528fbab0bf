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
from sparsefleet.fleet.shape import Shape
from sparsefleet.fleet.supervisor import Setup, Supervisor

LIMIT_S = 180.0


def describe_nodes(cluster: Cluster, setup: Setup, shapes: Iterable[Shape]) -> list[dict[str, Any]]:
    """What each node that could run one of the shapes would run; of a cluster of one node nothing, its first supervisor will tell.

    Raises:
        BackendUnreachable: a node does not answer.
    """
    wanted = list(shapes)
    nodes = [node for node in cluster.nodes() if any(node.fits(shape) for shape in wanted)]
    if len(nodes) < 2:
        return []
    actor_class: Any = ray.remote(max_restarts=0, max_task_retries=0)(Supervisor)
    actors = [
        actor_class.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(setup)
        for node in nodes
    ]
    hellos = [actor.hello.remote() for actor in actors]
    try:
        _wait_for_all(cluster, hellos)
        silent = [node.name for node, hello in zip(nodes, hellos, strict=True) if not ray.wait([hello], timeout=0)[0]]
        if silent:
            raise BackendUnreachable(f"{', '.join(silent)} did not answer within {LIMIT_S:.0f} s", fix="sparsefleet doctor")
        told: list[dict[str, Any]] = ray.get(hellos, timeout=LIMIT_S)
        return [{**description, "node": node.name} for node, description in zip(nodes, told, strict=True)]
    except ray.exceptions.RayError as error:
        cause = str(getattr(error, "cause", None) or error)
        raise BackendUnreachable("a node of the cluster does not say what it runs", cause=cause, fix="sparsefleet doctor") from error
    finally:
        for actor in actors:
            if not cluster.lost:
                with suppress(ray.exceptions.RayError):
                    ray.kill(actor)


def _wait_for_all(cluster: Cluster, hellos: list[Any]) -> None:
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until and len(ray.wait(hellos, num_returns=len(hellos), timeout=1.0)[0]) < len(hellos):
        cluster.view.check()
