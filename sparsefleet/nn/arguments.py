"""What a Sparsifier is told, checked before anything changes: a mistake ends in one sentence, and never in a training that does nothing."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from types import SimpleNamespace
from typing import Any, get_args

import torch
from torch import nn

from sparsefleet.errors import UserError
from sparsefleet.plugin import Layer, Plugin, Progress, Pruner, Rewirer
from sparsefleet.registry import Registry
from sparsefleet.sparsity.vocabulary import Cubic, Distribution, Iterative, Linear, Neuron, NOfM, OneShot, Pattern

_SCHEDULES = (OneShot, Linear, Cubic, Iterative)


def plugin(registry: Registry, family: str, given: Any) -> Any:
    """The plugin that is meant.

    Args:
        given: a plugin, which stays as it is; the name of one, with its defaults; ``{name: {parameter: value}}`` as in a grid; or None.

    Raises:
        UserError: something else, an unknown name, or parameters out of their bounds.
    """
    if given is None or (isinstance(given, Plugin) and given.family == family):
        return given
    if isinstance(given, str):
        given = {given: {}}
    if isinstance(given, Mapping) and len(given) == 1:
        ((name, params),) = given.items()
        if isinstance(name, str) and isinstance(params, Mapping):
            return registry.build(family, SimpleNamespace(name=name, params=dict(params)))
    raise UserError(f"{family} must be a name, {{name: {{parameter: value}}}} or a {family} object, got {given!r}")


def check_numbers(total_steps: Any, steps_per_epoch: Any) -> None:
    """Raises ``UserError`` where a count of steps is none."""
    for name, n in (("total_steps", total_steps), ("steps_per_epoch", 1 if steps_per_epoch is None else steps_per_epoch)):
        if not isinstance(n, int) or n < 1:
            raise UserError(f"{name} must be a whole number, at least 1, got {n!r}")


def check_choices(distribution: Any, schedule: Any, pattern: Any, *, has_pruner: bool) -> None:
    """Raises ``UserError`` where a word or an object is none of the core's."""
    if distribution not in get_args(Distribution):
        raise UserError(f"distribution must be one of {', '.join(get_args(Distribution))}, got {distribution!r}")
    if distribution == "global" and not has_pruner:
        raise UserError("distribution 'global' compares the scores of a pruner; a rewirer has none", fix="use uniform, er or erk")
    patterns = get_args(get_args(Pattern)[0])
    for what, given, kinds in (("schedule", schedule, _SCHEDULES), ("pattern", pattern, patterns)):
        if given is not None and not isinstance(given, kinds):
            names = ", ".join(f"{kind.__name__}(...)" for kind in kinds)
            raise UserError(f"{what} must be one of {names} of sparsefleet.sparsity.vocabulary, got {given!r}")
        if given is not None and not has_pruner:
            raise UserError(f"a {what} belongs to a pruner; a rewirer has none")


def check_names(model: nn.Module, keep_dense: Any, replacing: Mapping[str, nn.Module]) -> None:
    """Raises ``UserError`` where modules that stay dense are not there.

    Args:
        replacing: what will stand in the place of modules, by name; its parts are there too.
    """
    if isinstance(keep_dense, str) or not isinstance(keep_dense, Collection):
        raise UserError(f"keep_dense must be a list of module names, got {keep_dense!r}")
    there = {name for name, _ in model.named_modules(remove_duplicate=False)}
    there |= {f"{name}.{part}" for name, module in replacing.items() for part, _ in module.named_modules()}
    unknown = [name for name in keep_dense if name not in there]
    if unknown:
        known = [name for name, module in model.named_modules() if name and not list(module.children())]
        raise UserError(f"keep_dense names {', '.join(map(repr, unknown))}; the model has {', '.join(known)}")


def check_method(method: Pruner | Rewirer, storage: Layer, optimizer: torch.optim.Optimizer) -> None:
    """Ends what a plan would skip.

    Args:
        storage: of the layers while the method is at work.
    """
    group = optimizer.param_groups[0]
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UserError("LBFGS takes a closure in each step, which a Sparsifier does not have", fix="use an optimizer that steps once")
    if isinstance(method, Rewirer) and method.needs_plain_sgd and (type(optimizer) is not torch.optim.SGD or group["momentum"]):
        raise UserError(f"{method.name} is defined for SGD without momentum")
    if method.needs_dense and not storage.stores_dense:
        raise UserError(f"{method.name} needs values at absent sites, which layer {storage.name!r} does not store", fix="layer='masked'")
    if isinstance(method, Pruner) and (method.needs_calibration or method.needs_grad):
        raise UserError(
            f"{method.name} scores a model on batches that a trial draws for it; a Sparsifier has none", fix="run it as a trial"
        )
    if isinstance(method, Rewirer) and storage.tile > 1 and not method.fits_tiles:
        raise UserError(f"{method.name} decides about each connection by itself; layer {storage.name!r} holds whole blocks")
    if isinstance(method, Rewirer) and storage.topology == "constant-fan-in" and not method.fits_fan_in:
        raise UserError(f"{method.name} does not keep a constant fan-in, which layer {storage.name!r} holds", fix="layer='csr'")
    if isinstance(method, Rewirer) and storage.topology == "constant-fan-in" and method.redistributes:
        raise UserError(
            f"{method.name} moves connections between layers; layer {storage.name!r} holds a constant fan-in", fix="layer='csr'"
        )
    if isinstance(method, Rewirer) and storage.topology == "constant-fan-in" and method.ablates_by and getattr(method, method.ablates_by):
        raise UserError(
            f"{method.name} takes all connections from weak units, and layer {storage.name!r} holds equally many for every unit",
            fix=f"{method.ablates_by}=0, or layer='csr'",
        )
    if storage.topology == "all":
        raise UserError(f"layer {storage.name!r} stores every weight")


def check_end(layer: Layer, pattern: Any) -> None:
    """Ends a pruning whose result ``layer`` could not store."""
    if layer.narrows and not isinstance(pattern, Neuron):
        raise UserError(f"layer {layer.name!r} removes whole units", fix="pattern=Neuron()")
    if layer.topology == "all" and not layer.narrows:
        raise UserError(f"layer {layer.name!r} stores every weight")
    if layer.topology == "n:m" and not (isinstance(pattern, NOfM) and (pattern.n, pattern.m) == (2, 4)):
        raise UserError(f"layer {layer.name!r} holds 2 of every 4 inputs", fix="pattern=NOfM(n=2, m=4)")


def check_due(rewirer: Rewirer, total_steps: int, per_epoch: int) -> None:
    """Warns of a training in which a rewirer would never act, with what would help; ``static`` never wants to."""
    if rewirer.drop_fraction == 0 or type(rewirer).on_step is not Rewirer.on_step:
        return
    if not any(rewirer.due(Progress(step, total_steps, per_epoch)) for step in range(total_steps + 1)):
        when = "at the end of every epoch but the last" if rewirer.every is None else f"every {rewirer.every} steps"
        warnings.warn(
            f"{rewirer.name} acts {when}, which never comes in {total_steps} steps, {per_epoch} an epoch: the connections will stay; give "
            f"steps_per_epoch, or rewirer={{{rewirer.name!r}: {{'every': {max(1, total_steps // 10)}}}}}",
            stacklevel=3,
        )


def check_holds(optimizer: torch.optim.Optimizer, weights: Collection[nn.Parameter]) -> None:
    """Raises ``UserError`` where the optimizer trains none of the weights that become sparse: it is another model's."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if weights and not any(id(weight) in held for weight in weights):
        raise UserError("the optimizer holds none of the weights that become sparse", fix="build it over this model's parameters")
