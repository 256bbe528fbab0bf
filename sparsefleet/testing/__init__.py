"""The conformance kit for plugin authors: ``check(plugin)`` lists what is wrong, ``@conformance(plugin)`` makes pytest cases of it.

``run_checks(plugin)`` yields every check with its outcome; ``layer_of`` makes small layers to try a method on, ``calibration_of`` the core's
calibration of them, and ``apply`` makes the layer after an update. The names load on first use, so that ``sparsefleet plugins check`` starts
without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsefleet.testing.calibration import calibration_of
    from sparsefleet.testing.expect import Nonconforming
    from sparsefleet.testing.kit import Outcome, check, check_all, checks_for, conformance, run_checks
    from sparsefleet.testing.samples import layer_of
    from sparsefleet.testing.updates import apply

_HOME = {
    "Nonconforming": "expect",
    **dict.fromkeys(("Outcome", "check", "check_all", "checks_for", "conformance", "run_checks"), "kit"),
    "layer_of": "samples",
    "calibration_of": "calibration",
    "apply": "updates",
}

__all__ = [
    "Nonconforming",
    "Outcome",
    "apply",
    "calibration_of",
    "check",
    "check_all",
    "checks_for",
    "conformance",
    "layer_of",
    "run_checks",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"sparsefleet.testing.{_HOME[name]}"), name)
    raise AttributeError(f"module 'sparsefleet.testing' has no attribute {name!r}")
