"""Effective connections: those on a path from an input to an output (arXiv 2107.02306, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

_CHUNK = 1 << 20
Sites = Callable[[], Tensor] | None


def effective_nnz(layers: Sequence[tuple[tuple[int, int], Sites]]) -> list[int] | None:
    """Effective connections of each layer of a chain, or None if the layers do not form one.

    Only one layer's sites are held at a time, and their rows and columns in parts.

    Args:
        layers: input to output: ``(n_out, n_in)`` and a function that gives the ``(nnz,)`` ascending flat sites; None where all are connected.
    """
    if any(before[0][0] != after[0][1] for before, after in pairwise(layers)):
        return None
    reached = [torch.ones(layers[0][0][1], dtype=torch.bool)] if layers else []
    for shape, sites in layers:
        alive = torch.zeros(shape[0], dtype=torch.bool)
        if sites is None:
            alive |= bool(reached[-1].any())
        else:
            for row, col in _parts(sites(), shape):
                alive[row[reached[-1][col]]] = True
        reached.append(alive)
    counts = []
    useful = torch.ones(layers[-1][0][0], dtype=torch.bool) if layers else torch.empty(0)
    for (shape, sites), alive in zip(reversed(layers), reversed(reached[:-1]), strict=True):
        before = torch.zeros(shape[1], dtype=torch.bool)
        if sites is None:
            n = int(useful.sum()) * int(alive.sum())
            before |= alive & bool(useful.any())
        else:
            n = 0
            for row, col in _parts(sites(), shape):
                on_path = useful[row] & alive[col]
                n += int(on_path.sum())
                before[col[on_path]] = True
        counts.append(n)
        useful = before
    return counts[::-1]


def _parts(flat: Tensor, shape: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and columns of the sites, some at a time."""
    for part in torch.split(flat, _CHUNK):
        own = part.cpu()
        yield own // shape[1], own % shape[1]
