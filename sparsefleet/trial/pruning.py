"""When a trial's pruner acts, and when the pruned network moves to the layer that the trial asks for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from sparsefleet.errors import Diverged, PluginError
from sparsefleet.nn.topology import Change, Topology
from sparsefleet.sparsity.schedule import density_at
from sparsefleet.trial import account
from sparsefleet.trial.build import convert
from sparsefleet.trial.objective import make_optimizer
from sparsefleet.trial.scoring import scores

if TYPE_CHECKING:
    from sparsefleet.trial.training import Training


def prune_if_due(training: Training) -> None:
    """Removes what the schedule asks to be gone by now."""
    pruner, topology, spec = training.pruner, training.topology, training.spec
    if pruner is None or training.step not in training.prunings or training.converted:
        return
    density = density_at(training.schedule, training.step, training.total_steps, spec.density)
    rounds = pruner.rounds if pruner.needs_calibration else 1
    now = topology.nnz / topology.n_sites
    changes: list[Change] = []
    for i in range(1, rounds + 1):
        target = density if i == rounds else now * (density / now) ** (i / rounds)
        groups = [[name] for name in training.network.sparse] if pruner.sequential else [list(training.network.sparse)]
        for names in groups:
            changes += topology.prune(
                scores(training, names),
                target,
                distribution=spec.method.distribution,
                pattern=spec.method.pattern,
                per_row=pruner.per_row,
                only=names[0] if pruner.sequential else None,
            )
    training.note_changes(changes)


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
    training.optimizer = make_optimizer(spec.optimizer, spec.train, list(network.module.parameters()))
    account.carry_slots(network, slots, old_parameters, training.optimizer)
    training.topology = Topology(network.sparse, training.optimizer, spec.seed, network.shapes)
    training.converted = True
    training.log.note(training.step, f"converted to {spec.layer.name}", max_rel_output_error=error, nnz=float(nnz))
