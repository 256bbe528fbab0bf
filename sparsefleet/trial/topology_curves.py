"""Curves of a trial's topology: what was asked and what is there, who is dead, what was explored, how far an update moves.

An update's own counts are told of every update or, where a method acts at every step, of the last one before a curve's next point. What is
counted over all connections takes a step or two of time. It is told at most ~200 times in a run and at most every 100 steps, which is
1 to 2 % of the training, or 12 times in a run that is too short for that. Nothing here looks at a clock: a resumed trial has the same curves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsefleet.nn.module import Remap, SparseModule
from sparsefleet.nn.topology import Change
from sparsefleet.ops import positions
from sparsefleet.sparsity.distribute import total_nnz
from sparsefleet.sparsity.effective import chain_counts, parts
from sparsefleet.sparsity.explored import Explored
from sparsefleet.sparsity.schedule import density_at
from sparsefleet.trial import account

if TYPE_CHECKING:
    from sparsefleet.trial.training import Training

SPACING = 100
_LEAST_POINTS = 12
_MOST_LAYERS = 64
_LAYER_POINTS = 2000
_MOST_WAITING = 1 << 18


@dataclass
class Watch:
    """What the curves remember between updates.

    Attributes:
        explored: every site that was ever connected; None for what is no rewirer.
        n_returned: sites that the update in progress dropped and grew again; they are in both of its counts and change no mask.
    """

    explored: Explored | None = None
    n_returned: int = 0
    _waiting: dict[str, list[Tensor]] = field(default_factory=dict)
    _n_waiting: int = 0

    def see(self, name: str, remap: Remap) -> None:
        """One layer's connections have changed."""
        if not remap.grown.numel():
            return
        if remap.n_dropped:
            self.n_returned += int((positions(remap.before, remap.grown) >= 0).sum())
        if self.explored is not None:
            self._waiting.setdefault(name, []).append(remap.grown.cpu())
            self._n_waiting += remap.grown.numel()
            if self._n_waiting > _MOST_WAITING:
                self.settled()

    def settled(self) -> Explored | None:
        """``explored`` with all that was seen: a few new sites at every step are taken together, since adding takes a pass over what is known."""
        for name, grown in self._waiting.items():
            assert self.explored is not None
            self.explored.add(name, torch.unique(torch.cat(grown)))
        self._waiting, self._n_waiting = {}, 0
        return self.explored


def begin(training: Training, *, fresh: bool) -> None:
    """Watches the topology from here on.

    Args:
        fresh: the trial starts, and its first topology is told; otherwise a checkpoint tells what has been.
    """
    sparse = training.network.sparse
    watch = training.watch = Watch()
    training.topology.on_change = watch.see
    if training.rewirer is not None:
        watch.explored = Explored({name: math.prod(module.matrix_shape) for name, module in sparse.items()})
    if fresh:
        for name, module in sparse.items():
            if watch.explored is not None:
                watch.explored.add(name, module.flat_sites())
        tell_topology(training)


def tell_update(training: Training, changes: list[Change]) -> None:
    """The curves that follow from one update's own counts, and those of the topology where they are due."""
    log, step, topology, watch = training.log, training.step, training.topology, training.watch
    n_dropped, n_grown = sum(change.n_dropped for change in changes), sum(change.n_grown for change in changes)
    log.add("density", step, topology.nnz / topology.n_sites, thin=True)
    log.add_sum("connections_dropped_total", step, n_dropped)
    log.add_sum("connections_grown_total", step, n_grown)
    moved = n_dropped + n_grown - 2 * watch.n_returned
    before = topology.nnz + n_dropped - n_grown
    together = before + n_grown - watch.n_returned  # in the mask before, or in the one after
    log.add("mask_hamming", step, moved / topology.n_sites, thin=True)
    log.add("mask_jaccard", step, moved / together if together else 0.0, thin=True)
    watch.n_returned = 0
    if training.rewirer is not None:
        peak = sum(change.n_peak for change in changes)
        log.add("transient_overshoot", step, max(0.0, peak / max(1, sum(topology.asked.values())) - 1.0), thin=True)
    if n_dropped + n_grown:
        tell_topology(training)


def tell_topology(training: Training, *, now: bool = False) -> None:
    """nnz asked, realised and effective, explored share, units without inputs or outputs, and every layer's density, where they are due.

    Args:
        now: due or not, unless this step has been told.
    """
    log, step, network = training.log, training.step, training.network
    if not network.sparse or not log.is_due("nnz", step, 1 if now else spacing(training)):
        return
    log.add("nnz", step, training.topology.nnz)
    log.add("nnz_asked", step, _asked(training))
    explored = training.watch.settled()
    if explored is not None and explored.fraction is not None:
        log.add("explored_fraction", step, explored.fraction)
    layers = account.chain(network)
    found = chain_counts(layers) if layers else None
    if found is not None:
        effective = [n for name, n in zip(network.prunable, found.effective, strict=True) if name in network.sparse]
        log.add("nnz_effective", step, sum(effective))
        log.add("dead_units", step, found.dead_units)
        log.add("unused_inputs", step, found.unused_inputs)
    else:
        counted = [_untouched(module) for module in network.sparse.values()]
        log.add("units_without_inputs", step, sum(n for n, _ in counted))
        log.add("units_without_outputs", step, sum(n for _, n in counted))
    for name in of_layers(list(network.sparse)):
        module, curve = network.sparse[name], f"density/{name}"
        value = module.nnz / (module.matrix_shape[0] * module.matrix_shape[1])
        if log.is_due(curve, step, 1 if now else layer_spacing(training)) and log.last(curve) != value:
            log.add(curve, step, value)


def spacing(training: Training) -> int:
    """Fewest steps between two points of what is counted over all connections."""
    return max(training.log.every, min(SPACING, training.total_steps // _LEAST_POINTS))


def of_layers(names: list[str]) -> list[str]:
    """The layers that have a curve of their own: all, or 64 spread evenly from the first to the last."""
    if len(names) <= _MOST_LAYERS:
        return names
    return [names[round(i * (len(names) - 1) / (_MOST_LAYERS - 1))] for i in range(_MOST_LAYERS)]


def layer_spacing(training: Training) -> int:
    """Fewest steps between two points of a layer's curve, so that all layers' curves of one figure have about 2,000 points together."""
    n_curves = min(_MOST_LAYERS, max(1, len(training.network.prunable)))
    return max(spacing(training), training.total_steps * n_curves // _LAYER_POINTS)


def _asked(training: Training) -> int:
    """Connections that the method should have by now."""
    topology, prunings = training.topology, training.prunings
    if training.pruner is None:
        return sum(topology.asked.values())
    if prunings and training.step < prunings[0]:
        return topology.nnz  # nothing was asked yet
    last = not prunings or training.step >= prunings[-1]
    final = training.spec.density
    return total_nnz(topology.n_sites, final if last else density_at(training.schedule, training.step, training.total_steps, final))


def _untouched(module: SparseModule) -> tuple[int, int]:
    """How many output units (rows, channels) have no incoming connection, and how many input units no outgoing one, in one layer."""
    inner = getattr(module, "inner", None)
    groups = int(getattr(inner, "groups", 1))
    (n_out, n_in), kernel = module.matrix_shape, module.kernel
    flat = module.flat_sites()
    rows = torch.zeros(n_out, dtype=torch.bool, device=flat.device)
    cols = torch.zeros(groups * (n_in // kernel), dtype=torch.bool, device=flat.device)
    for row, col in parts(flat, n_in):
        rows[row] = True
        cols[_channel(row, col, n_out // groups, n_in // kernel, kernel)] = True
    return int((~rows).sum()), int((~cols).sum())


def _channel(row: Tensor, col: Tensor, out_per_group: int, in_per_group: int, kernel: int) -> Tensor:
    """The input unit that each connection comes from; a convolution in groups sees the channels of its own group only."""
    return torch.div(row, out_per_group, rounding_mode="trunc") * in_per_group + torch.div(col, kernel, rounding_mode="trunc")
