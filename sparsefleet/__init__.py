"""sparsefleet: a distributed benchmark service for sparse neural networks.

The public names for plugin authors. They load on first use, so that importing the package imports neither torch nor ray nor mlflow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsefleet.connections import Connections, DenseValues, check_sites
    from sparsefleet.errors import PluginError, UserError
    from sparsefleet.hookspecs import hookimpl
    from sparsefleet.plugin import (
        Activation,
        Calibration,
        Connectivity,
        DataInfo,
        Dataset,
        Layer,
        Model,
        Plugin,
        Progress,
        Pruner,
        Rewirer,
        TensorData,
        Update,
    )
    from sparsefleet.rng import Rng
    from sparsefleet.sparsity.distribute import apportion
    from sparsefleet.sparsity.select import keep_best, keep_best_per_row, lowest_within, rank_within, share_of

_HOME = {
    "Connections": "connections",
    "DenseValues": "connections",
    "check_sites": "connections",
    "PluginError": "errors",
    "UserError": "errors",
    "hookimpl": "hookspecs",
    "Rng": "rng",
    "apportion": "sparsity.distribute",
    **dict.fromkeys(("keep_best", "keep_best_per_row", "lowest_within", "rank_within", "share_of"), "sparsity.select"),
    **dict.fromkeys(
        (
            "Activation",
            "Calibration",
            "Connectivity",
            "DataInfo",
            "Dataset",
            "Layer",
            "Model",
            "Plugin",
            "Progress",
            "Pruner",
            "Rewirer",
            "TensorData",
            "Update",
        ),
        "plugin",
    ),
}

__version__ = "0.1.0"
__all__ = [
    "Activation",
    "Calibration",
    "Connections",
    "Connectivity",
    "DataInfo",
    "Dataset",
    "DenseValues",
    "Layer",
    "Model",
    "Plugin",
    "PluginError",
    "Progress",
    "Pruner",
    "Rewirer",
    "Rng",
    "TensorData",
    "Update",
    "UserError",
    "apportion",
    "check_sites",
    "hookimpl",
    "keep_best",
    "keep_best_per_row",
    "lowest_within",
    "rank_within",
    "share_of",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"sparsefleet.{_HOME[name]}"), name)
    raise AttributeError(f"module 'sparsefleet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
