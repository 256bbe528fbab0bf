"""What a Ray of one driver on one machine leaves out: its servers listen on loopback, and processes that nobody would ask do not start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray


@contextmanager
def small_ray() -> Iterator[None]:
    """While Ray starts; other Rays of this process are their owners' business, so all of it is undone afterwards.

    The jobs and metrics server (without a dashboard it starts all the same), the autoscaler and what forwards workers' output do not start, and
    the node's agent is that of a Ray without ``[default]``. They take half of the time in which Ray starts, most of that in which it ends, and
    about 200 MiB.
    """
    private: Any = ray._private
    changes: list[tuple[Any, str, Any]] = [
        (private.ray_constants, "ENABLE_RAY_CLUSTER", False),  # as Ray does on a Mac by itself
        (private.node.Node, "start_api_server", _nothing),
        (private.node.Node, "start_monitor", _nothing),
        (private.node.Node, "start_log_monitor", _nothing),
        (private.utils, "get_dashboard_dependency_error", lambda: ImportError("left out")),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes if hasattr(owner, name)]
    try:
        for owner, name, value in changes:
            if hasattr(owner, name):
                setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _nothing(*_: object, **__: object) -> None:
    return None
