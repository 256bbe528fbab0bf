"""Effective connections: those on a path from an input to an output (arXiv 2107.02306, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def effective_nnz(layers: Sequence[tuple[tuple[int, int], Tensor]]) -> list[int] | None:
    """Effective connections of each layer of a chain, or None if the layers do not form one.

    Args:
        layers: input to output: ``(n_out, n_in)`` and ``(nnz,)`` ascending flat sites.
    """
    if any(before[0][0] != after[0][1] for before, after in pairwise(layers)):
        return None
    pairs = [(flat // shape[1], flat % shape[1]) for shape, flat in layers]
    device = pairs[0][0].device if pairs else None
    reached = [torch.ones(layers[0][0][1], dtype=torch.bool, device=device)] if layers else []
    for (shape, _), (row, col) in zip(layers, pairs, strict=True):
        alive = torch.zeros(shape[0], dtype=torch.bool, device=device)
        alive[row[reached[-1][col]]] = True
        reached.append(alive)
    counts = []
    useful = torch.ones(layers[-1][0][0], dtype=torch.bool, device=device) if layers else None
    for (shape, _), (row, col), alive in zip(reversed(layers), reversed(pairs), reversed(reached[:-1]), strict=True):
        assert useful is not None
        on_path = useful[row] & alive[col]
        counts.append(int(on_path.sum()))
        useful = torch.zeros(shape[1], dtype=torch.bool, device=device)
        useful[col[on_path]] = True
    return counts[::-1]
