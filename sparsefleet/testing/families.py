"""Which checks the family of a plugin asks of it, beyond those of every plugin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparsefleet.plugin import Layer, Plugin, Pruner
from sparsefleet.testing import (
    activation,
    calibrated,
    connectivity,
    dataset,
    layer,
    layer_scale,
    layer_training,
    layer_uses,
    model,
    pruner,
    resume,
    reviving,
    rewirer,
    rewirer_layers,
    training,
)

Check = Callable[[Any], None]

CHECKS_BY_KIND: dict[str, tuple[Check, ...]] = {
    "pruner": (*pruner.CHECKS, training.prunes_to_the_count, resume.resumes_to_the_bit),
    "pruner that scores a whole model": calibrated.CHECKS,
    "pruner that revives": (*reviving.CHECKS, training.prunes_to_the_count, resume.resumes_to_the_bit),
    "rewirer": (*rewirer.CHECKS, *rewirer_layers.CHECKS, training.keeps_optimizer_slots, resume.resumes_to_the_bit),
    "layer": (*layer.CHECKS, *layer_uses.CHECKS, *layer_training.CHECKS, *layer_scale.CHECKS),
    "layer that cannot compute here": (layer.names_what_it_needs,),
    "connectivity": connectivity.CHECKS,
    "activation": activation.CHECKS,
    "model": model.CHECKS,
    "dataset": dataset.CHECKS,
}
"""All family checks, by the family or the kind of plugin within it."""


def kind_of(plugin: Plugin) -> str:
    """A key of ``CHECKS_BY_KIND``."""
    if isinstance(plugin, Layer) and not layer.runs_here(plugin):
        return "layer that cannot compute here"
    if isinstance(plugin, Pruner) and plugin.needs_calibration:
        return "pruner that scores a whole model"
    if isinstance(plugin, Pruner) and plugin.revives:
        return "pruner that revives"
    return plugin.family


def family_checks(plugin: Plugin) -> tuple[Check, ...]:
    """The checks of ``plugin``'s kind."""
    return CHECKS_BY_KIND[kind_of(plugin)]
