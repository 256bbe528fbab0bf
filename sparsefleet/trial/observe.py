"""Calls observing hooks inside a trial."""

from __future__ import annotations

from typing import Any

from sparsefleet.registry import Registry
from sparsefleet.trial.log import Log


def observe(registry: Registry, log: Log, hook: str, **arguments: Any) -> list[tuple[str, Any]]:
    """Results of one observing hook; an implementation that raised is a warning in the record and loses nobody's trial."""
    results = []
    for distribution, answer in registry.observe(hook, **arguments):
        if isinstance(answer, BaseException):
            log.warn(f"{hook} of {distribution} raised {type(answer).__name__}: {answer}")
        elif answer is not None:
            results.append((distribution, answer))
    return results
