"""Whole units leave a network whose modules are masked; ``sparsefleet.nn.compact`` makes it really smaller.

Masked, a unit has no connection in and none out, and its bias and norm entries are zero. Since nothing reads it, its gradients are exactly zero,
and with its optimizer slots zeroed too it stays so, whatever the optimizer is. LayerNorm normalises over the units that stay. So the masked network
computes what the compact one computes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsefleet.errors import UserError
from sparsefleet.nn.materialise import replace_module
from sparsefleet.nn.places import refuse_losses
from sparsefleet.nn.topology import Change, Topology
from sparsefleet.nn.units import Group, matrix_shape, units_of
from sparsefleet.sparsity.units import Matrix, choose_units, unit_scores
from sparsefleet.sparsity.vocabulary import Distribution, Neuron, Pattern


@dataclass(frozen=True)
class Units:
    """The groups of a network, and which of their units are there: ``(n,)`` bool each. ``names``: of the modules that are pruned."""

    groups: Sequence[Group]
    kept: Sequence[Tensor]
    names: Collection[str]

    def rows(self, name: str) -> Tensor | None:
        """``(n_out,)`` bool: the rows of the module that are there, or None if it computes no group."""
        return next((kept for group, kept in zip(self.groups, self.kept, strict=True) if name in group.writers), None)

    def cols(self, name: str) -> Tensor | None:
        """``(n_in,)`` bool: its columns, a kernel's elements included, or None if it reads no group that is known."""
        pairs = zip(self.groups, self.kept, strict=True)
        return next((kept.repeat_interleave(group.readers[name]) for group, kept in pairs if name in group.readers), None)

    @property
    def whole(self) -> bool:
        """No unit has gone."""
        return all(bool(kept.all()) for kept in self.kept)


def units_left(network: nn.Module, sites: Mapping[str, Tensor]) -> Units:
    """The units of which a connection is left.

    Args:
        sites: ``(nnz,)`` int64 flat positions of each sparse module.
    """
    groups, kept = units_of(network), []
    for group in groups:
        name = next((name for name in group.writers if name in sites), None)
        alive = torch.ones(group.size, dtype=torch.bool)
        if name is not None:
            rows = sites[name].cpu() // matrix_shape(network.get_submodule(name))[1]
            alive = torch.zeros(group.size, dtype=torch.bool).index_fill_(0, rows, True)
        kept.append(alive)
    return Units(groups, kept, sites)


def prune_units(
    network: nn.Module,
    topology: Topology,
    scores: Mapping[str, Tensor],
    density: float,
    pattern: Neuron,
    distribution: Distribution = "uniform",
    *,
    end: float | None = None,
) -> list[Change]:
    """Removes the units of lowest score until ``density`` is left, as near as whole units come; what is gone stays gone.

    A unit's score is that of its weights (``unit_scores``); of units that an addition couples, the sum over all modules that compute them. Columns
    that read it, its bias and its norms do not count.

    Args:
        scores: ``(nnz,)`` per sparse module.
        end: the density that later calls will come to; what it needs of each layer stays.

    Raises:
        UserError: units that should go cannot be followed through the network, or another distribution.
    """
    sites = {name: module.flat_sites() for name, module in topology.modules.items()}
    shapes = {name: module.matrix_shape for name, module in topology.modules.items()}
    before = units_left(network, sites)
    totals = []
    for group, alive in zip(before.groups, before.kept, strict=True):
        total = torch.zeros(group.size, dtype=torch.float64)
        for name in (each for each in group.writers if each in sites):
            if scores[name].dim() != 1:
                raise UserError("pattern neuron removes units for good, and this pruner lets connections return")
            total += unit_scores(scores[name], sites[name] // shapes[name][1], group.size, pattern.p).cpu()
        totals.append(total.masked_fill_(~alive, -torch.inf))
    last = next((name for name, module in topology.modules.items() if module.is_last), None)
    kept = _chosen(before.groups, totals, shapes, last, (density, pattern, distribution))
    if end is not None and end < density:
        kept = [a | b for a, b in zip(kept, _chosen(before.groups, totals, shapes, last, (end, pattern, distribution)), strict=True)]
    after = Units(before.groups, kept, shapes)
    changes = []
    for name, module in topology.modules.items():
        row, col = module.sites()
        keep = torch.ones(row.numel(), dtype=torch.bool, device=row.device)
        rows, cols = after.rows(name), after.cols(name)
        for alive, place in ((rows, row), (cols, col)):  # type: ignore[assignment]
            if alive is not None:
                keep &= alive.to(row.device)[place]
        changes.append(topology.change(name, keep, torch.empty((2, 0), dtype=torch.int64, device=row.device)))
    settle(network, after, topology.optimizer)
    return changes


def nnz_by_units(
    network: nn.Module, shapes: Mapping[str, tuple[int, int]], last: str | None, density: float, pattern: Neuron
) -> dict[str, int]:
    """Connections of each module once its units are spread uniformly for ``density``, whatever their scores are.

    Args:
        shapes: ``(n_out, n_in)`` of the prunable modules.
        last: the one whose outputs are the network's, if it is among them.
    """
    groups = units_of(network)
    kept = _chosen(groups, [torch.zeros(group.size, dtype=torch.float64) for group in groups], shapes, last, (density, pattern, "uniform"))
    units, found = Units(groups, kept, shapes), {}
    for name, (n_out, n_in) in shapes.items():
        rows, cols = units.rows(name), units.cols(name)
        found[name] = (n_out if rows is None else int(rows.sum())) * (n_in if cols is None else int(cols.sum()))
    return found


def share_left(network: nn.Module, topology: Topology, pattern: Pattern) -> float:
    """What is left of what the pattern's density counts: of the weights, or of the units that may go."""
    if not (isinstance(pattern, Neuron) and pattern.counts == "units"):
        return topology.nnz / topology.n_sites
    units = units_left(network, {name: module.flat_sites() for name, module in topology.modules.items()})
    last = next((name for name, module in topology.modules.items() if module.is_last), None)
    free = [kept for group, kept in zip(units.groups, units.kept, strict=True) if _may_go(group, list(topology.modules), last)]
    return sum(int(kept.sum()) for kept in free) / sum(kept.numel() for kept in free) if free else 1.0


def _chosen(
    groups: Sequence[Group],
    scores: Sequence[Tensor],
    shapes: Mapping[str, tuple[int, int]],
    last: str | None,
    how: tuple[float, Neuron, Distribution],
) -> list[Tensor]:
    """``(n,)`` bool for each group: the units that stay, for (density, pattern, distribution)."""
    density, pattern, distribution = how
    if distribution not in ("uniform", "global"):
        raise UserError(f"pattern neuron spreads units, and distribution {distribution!r} weights", fix="distribution: uniform or global")
    free = [_may_go(group, list(shapes), last) for group in groups]
    if not any(free):
        raise UserError("no layer has units that may go: inputs, outputs and what keep_dense names stay")
    matrices, whole = _matrices(groups, shapes)
    may = [*free, *(False for _ in whole)]
    kept = choose_units([*scores, *whole], may, matrices, density, counts=pattern.counts, distribution=distribution)
    return kept[: len(groups)]


def _may_go(group: Group, names: Sequence[str], last: str | None) -> bool:
    pruned = [name for name in group.writers if name in names]
    if not pruned or len(pruned) < len(group.writers) or group.fixed or (group.lost and last in pruned):
        return False
    kept_dense = [name for name in group.readers if name not in names]
    if group.lost:
        raise UserError(
            f"pattern neuron cannot follow the units of {', '.join(pruned)} through {group.lost}",
            fix=f"keep_dense: [{', '.join(pruned)}], or the pattern row",
        )
    if kept_dense and not group.zero:
        raise UserError(
            f"{', '.join(kept_dense)} stays dense and reads units of {', '.join(pruned)} behind an activation that is not 0 at 0",
            fix=f"keep_dense without {', '.join(kept_dense)}",
        )
    return True


def _matrices(groups: Sequence[Group], shapes: Mapping[str, tuple[int, int]]) -> tuple[list[Matrix], list[Tensor]]:
    """The weights of the sparse modules by the groups of their rows and columns, and groups for rows and columns that are not known."""
    matrices: list[Matrix] = []
    whole: list[Tensor] = []

    def known(place: int | None, n: int) -> int:
        if place is None:
            whole.append(torch.zeros(n, dtype=torch.float64))
        return len(groups) + len(whole) - 1 if place is None else place

    for name, (n_out, n_in) in shapes.items():
        writer = known(next((i for i, group in enumerate(groups) if name in group.writers), None), n_out)
        reader = next((i for i, group in enumerate(groups) if name in group.readers), None)
        run = n_in if reader is None else groups[reader].readers[name]
        matrices.append(Matrix(writer, known(reader, 1), run))
    return matrices, whole


class UnitLayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` over the units that stay, zero at the others: what it is once they have gone (arXiv 1607.06450, Eq. 3).

    Args:
        norm: whose parameters it takes over, the objects themselves.
        kept: ``(n,)`` bool.
    """

    places: Tensor

    def __init__(self, norm: nn.LayerNorm, kept: Tensor) -> None:
        super().__init__(norm.normalized_shape, norm.eps, norm.elementwise_affine, bias=norm.bias is not None, device="meta")
        self.weight, self.bias = norm.weight, norm.bias
        self.relu = bool(getattr(norm, "relu", False))  # of ``sparsefleet.nn.LayerNorm``
        self.register_buffer("places", torch.nonzero(kept).flatten(), persistent=False)
        self.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = (None if each is None else each[self.places] for each in (self.weight, self.bias))
        out = F.layer_norm(input[..., self.places], (self.places.numel(),), weight, bias, self.eps)
        out = out.relu() if self.relu else out
        return out.new_zeros(input.shape).index_copy(-1, self.places, out)


def settle(network: nn.Module, units: Units, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Zeroes all that units which are gone have beside their connections, optimizer slots too, and lets LayerNorms leave them out."""
    if units.whole:
        return
    for _, tensor, place in _beside(network, units):
        gone = (slice(None),) * place.dim + (~place.kept.to(tensor.device),)
        for each in [tensor, *(optimizer.state.get(tensor, {}).values() if optimizer else ())]:
            if isinstance(each, Tensor) and each.shape == tensor.shape:
                each.detach()[gone] = 0
    for group, kept in zip(units.groups, units.kept, strict=True):
        for name in group.norms:
            norm = network.get_submodule(name)
            if isinstance(norm, nn.LayerNorm) and not bool(kept.all()):
                refuse_losses(network, [name], fix="remove them before")
                device = next((parameter.device for parameter in network.parameters()), None)
                replace_module(network, name, UnitLayerNorm(norm, kept.to(device)))


@dataclass(frozen=True)
class _Place:
    dim: int
    kept: Tensor


def _beside(network: nn.Module, units: Units) -> list[tuple[str, Any, _Place]]:
    """Parameters beside the connections with an entry for each unit: biases, norms, weights of readers that stay dense; by name."""
    found: list[tuple[str, Any, _Place]] = []
    for group, kept in zip(units.groups, units.kept, strict=True):
        for name in [*group.writers, *group.norms]:
            module = network.get_submodule(name)
            for key in ("bias", "weight") if name in group.norms else ("bias",):
                if getattr(module, key, None) is not None:
                    found.append((f"{name}.{key}", getattr(module, key), _Place(0, kept)))
        for name, run in group.readers.items():
            weight: Any = network.get_submodule(name).weight
            if name not in units.names:
                found.append((f"{name}.weight", weight, _Place(1, kept.repeat_interleave(run // weight[0, 0].numel()))))
    return found


def n_beside(network: nn.Module, units: Units) -> int:
    """Parameters that went with units and are no connections of a sparse module: biases, norm entries, columns of readers that stay dense."""
    return sum(int((~place.kept).sum()) * (tensor.numel() // tensor.shape[place.dim]) for _, tensor, place in _beside(network, units))
