"""What a trial's pruner removes, and when the pruned network moves to the layer that the trial asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsefleet.errors import Diverged, PluginError, UserError
from sparsefleet.nn.topology import Change, Topology
from sparsefleet.nn.unit_pruning import n_beside, prune_units, share_left, units_left
from sparsefleet.sparsity.vocabulary import Neuron
from sparsefleet.trial import account
from sparsefleet.trial.build import DENSITY_WITHIN, convert
from sparsefleet.trial.magnitude_curves import magnitudes, tell_preserved
from sparsefleet.trial.scoring import scores

if TYPE_CHECKING:
    from sparsefleet.trial.training import Training


def prune_to(training: Training, density: float) -> None:
    """Removes the lowest scores until the layers together have ``density``, in as many rounds as the criterion asks."""
    pruner, topology, spec = training.pruner, training.topology, training.spec
    assert pruner is not None
    rounds = pruner.rounds if pruner.needs_calibration else 1
    pattern = spec.method.pattern
    now = share_left(training.network.module, topology, pattern)
    changes: list[Change] = []
    before = magnitudes(training)
    for i in range(1, rounds + 1):
        target = density if i == rounds else now * (density / now) ** (i / rounds)
        groups = [[name] for name in training.network.sparse] if pruner.sequential else [list(training.network.sparse)]
        for names in groups:
            if isinstance(pattern, Neuron):
                changes += _prune_units(training, scores(training, names), target, pattern)
                continue
            changes += topology.prune(
                scores(training, names),
                target,
                distribution=spec.method.distribution,
                pattern=pattern,
                per_row=pruner.per_row,
                only=names[0] if pruner.sequential else None,
            )
    training.note_changes(changes)
    tell_preserved(training, before)


def _prune_units(training: Training, found: Mapping[str, Tensor], density: float, pattern: Neuron) -> list[Change]:
    """Removes whole units; says what is left where whole units cannot leave what was asked."""
    network, topology, pruner, method = training.network, training.topology, training.pruner, training.spec.method
    if pruner is None or pruner.per_row or pruner.sequential:
        raise UserError("pattern neuron compares units, and this pruner the weights of one unit", fix="pattern: unstructured")
    changes = prune_units(network.module, topology, found, density, pattern, method.distribution, end=training.spec.density)
    units = units_left(network.module, {name: module.flat_sites() for name, module in topology.modules.items()})
    network.n_beside = n_beside(network.module, units)
    left = share_left(network.module, topology, pattern)
    if density == training.spec.density and abs(left / density - 1) > DENSITY_WITHIN:
        training.log.warn(f"density {density:g} of the {pattern.counts} was asked; {left:.4g} is the nearest that whole units leave")
    return changes


def convert_if_due(training: Training) -> None:
    """Hands a pruned network over to the layer that the spec asks for, at the declared step.

    Raises:
        Diverged: the network's outputs are not finite.
        PluginError: the layer computes something else.
    """
    spec, network = training.spec, training.network
    if training.pruner is None or training.converted or network.storage == spec.layer.name:
        return
    if training.step < max(round(spec.method.convert_at * training.total_steps), training.prunings[-1]):
        return
    probe = training.splits.train.x[:16]
    slots = dict(training.optimizer.state)
    nnz = training.topology.nnz
    network.module.eval()
    with torch.no_grad():
        outputs = network.module(probe)
    network.module.train()
    if not bool(outputs.isfinite().all()):
        raise Diverged(training.step, math.nan)
    error, old_parameters = convert(network, spec, training.registry, probe)
    tolerance = 1e-9 if spec.train.precision == "fp64" else 1e-4
    if not error <= tolerance:
        raise PluginError(f"layer {spec.layer.name!r} changed the outputs by {error:.2g} at the conversion, allowed {tolerance:g}")
    training.optimizer = training.new_optimizer()
    account.carry_slots(network, slots, old_parameters, training.optimizer)
    training.topology = Topology(network.sparse, training.optimizer, spec.seed, network.shapes)
    training.converted = True
    training.log.note(training.step, f"converted to {spec.layer.name}", max_rel_output_error=error, nnz=float(nnz))
