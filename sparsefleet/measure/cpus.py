"""The CPUs that this process may use."""

from __future__ import annotations

import os


def cpus_allowed() -> frozenset[int]:
    """Their numbers; all of them where the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))
