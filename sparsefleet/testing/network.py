"""A small network with a norm, and the core's calibration of it, for pruners that score whole models."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from sparsefleet.connections import Connections
from sparsefleet.nn.masked import MaskedLinear
from sparsefleet.nn.module import SparseModule
from sparsefleet.nn.topology import Topology
from sparsefleet.plugin import DataInfo, Pruner
from sparsefleet.rng import Rng
from sparsefleet.trial.calibrate import NetworkCalibration

_SIZES = (8, 7, 6, 4)
_INFO = DataInfo("classification", (8,), 4)


@dataclass
class SmallNetwork:
    """Linear, BatchNorm, ReLU, Linear, ReLU, Linear in float64, half connected, with two calibration batches of 16 examples."""

    module: nn.Sequential
    sparse: dict[str, SparseModule]
    topology: Topology
    batches: list[tuple[Tensor, Tensor]]

    def calibration(self, only: str | None = None) -> NetworkCalibration:
        """The core's calibration, of one layer alone for a sequential pruner."""
        layers = self.topology.connections("prune", 0)
        return NetworkCalibration(self.module, self.sparse, layers if only is None else {only: layers[only]}, self.batches, _INFO)

    def groups(self, pruner: Pruner) -> list[str | None]:
        """What ``score_all`` is called for, one after another."""
        return list(self.sparse) if pruner.sequential else [None]

    def tensors(self) -> dict[str, Tensor]:
        """Copies of all that a pruner must leave as it was."""
        held = dict(self.module.state_dict())
        held |= {f"batch {i}, {name}": value for i, pair in enumerate(self.batches) for name, value in zip("xy", pair, strict=True)}
        return {name: value.clone() for name, value in held.items()}


def small_network(*, reverse_hidden: bool = False, dead: bool = False) -> SmallNetwork:
    """The same network at every call.

    Args:
        reverse_hidden: the units of the first hidden layer stand in reverse order; the function is the same.
        dead: the first input is 0 in every example, and in every layer the weights of the first output and of the second input unit are 0.
    """
    parts: list[nn.Module] = []
    sparse: dict[str, SparseModule] = {}
    for i, (n_in, n_out) in enumerate(pairwise(_SIZES)):
        flat = Rng("sites", i).distinct(n_in * n_out // 2, n_in * n_out)
        row, col, weight = flat // n_in, flat % n_in, Rng("weights", i).normal(flat.numel()) / n_in**0.5
        bias = 0.1 * Rng("bias", i).normal(n_out)
        if dead:
            weight[(row == 0) | (col == 1)] = 0
        if reverse_hidden and i < 2:
            row, col, bias = (n_out - 1 - row, col, bias.flip(0)) if i == 0 else (row, n_in - 1 - col, bias)
            order = torch.argsort(row * n_in + col)
            row, col, weight = row[order], col[order], weight[order]
        name = str(len(parts))
        module = MaskedLinear.from_connections(
            Connections(name, (n_out, n_in), row, col, weight), bias, template=nn.Linear(n_in, n_out, device="meta")
        )
        module.layer_name = name
        sparse[name] = module
        parts += [module, *([nn.BatchNorm1d(n_out, dtype=torch.float64)] if i == 0 else []), nn.ReLU()]
    network = nn.Sequential(*parts[:-1])
    x = Rng("examples").normal(32 * _SIZES[0]).view(32, -1)
    if dead:
        x[:, 0] = 0
    y = torch.arange(32) % 4  # as many of each class
    return SmallNetwork(network, sparse, Topology(sparse, None, seed=0), [(x[:16], y[:16]), (x[16:], y[16:])])
