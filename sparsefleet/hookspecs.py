"""Every hook. A plugin module implements any of them with ``@sparsefleet.hookimpl``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sparsefleet.plugin import Activation, Connectivity, Dataset, Layer, Model, Pruner, Rewirer

hookspec = pluggy.HookspecMarker("sparsefleet")
hookimpl = pluggy.HookimplMarker("sparsefleet")


@hookspec
def sparsefleet_pruners() -> Iterable[type[Pruner]]:
    """The pruners of this module. Added in 0.1."""


@hookspec
def sparsefleet_rewirers() -> Iterable[type[Rewirer]]:
    """The rewirers of this module. Added in 0.1."""


@hookspec
def sparsefleet_layers() -> Iterable[type[Layer]]:
    """The sparse layers of this module. Added in 0.1."""


@hookspec
def sparsefleet_connectivities() -> Iterable[type[Connectivity]]:
    """The connectivities of this module. Added in 0.1."""


@hookspec
def sparsefleet_activations() -> Iterable[type[Activation]]:
    """The activations of this module. Added in 0.1."""


@hookspec
def sparsefleet_models() -> Iterable[type[Model]]:
    """The models of this module. Added in 0.1."""


@hookspec
def sparsefleet_datasets() -> Iterable[type[Dataset]]:
    """The data sets of this module. Added in 0.1."""


@hookspec
def sparsefleet_before_trial(trial: Mapping[str, Any]) -> None:
    """Called in the trial's process before the data are loaded.

    Args:
        trial: the spec as JSON: ``dataset``, ``model``, ``layer``, ``density``, ``method``, ``optimizer``, ``train``, ``seed`` … (docs/schemas/sf-spec-1.json).

    Added in 0.1.
    """


@hookspec
def sparsefleet_measure(trial: Mapping[str, Any], model: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> Mapping[str, float]:
    """Extra metrics at the end of an epoch; they appear as curves, under the names that are returned.

    Args:
        trial: the spec as JSON.
        model: the network as it is trained; leave its mode, its weights and its gradients as they are.
        batch: the inputs and targets of the epoch's last step, on the model's device.
        step: optimizer steps that are done.

    Added in 0.1.
    """


@hookspec
def sparsefleet_after_trial(trial: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Called in the trial's process after its record is complete.

    Args:
        trial: the spec as JSON.
        result: the record as JSON: ``state``, ``accuracy``, ``curves``, ``plugins`` … (docs/schemas/sf-record-1.json).

    Added in 0.1.
    """


@hookspec
def sparsefleet_on_trial_error(trial: Mapping[str, Any], error: BaseException) -> None:
    """Called in the trial's process when the trial raised; a loss that diverged and memory that ran out are states of the record instead.

    Args:
        trial: the spec as JSON.
        error: what it raised; it goes on to the core afterwards, whatever the hook does.

    Added in 0.1.
    """


@hookspec
def sparsefleet_doctor() -> Iterable[tuple[str, bool, str]]:
    """Checks of this plugin's needs, called by ``sparsefleet doctor``: (what, ok, how to fix) each. Added in 0.1."""


REGISTRATION_HOOKS = {
    "sparsefleet_pruners": "pruner",
    "sparsefleet_rewirers": "rewirer",
    "sparsefleet_layers": "layer",
    "sparsefleet_connectivities": "connectivity",
    "sparsefleet_activations": "activation",
    "sparsefleet_models": "model",
    "sparsefleet_datasets": "dataset",
}
