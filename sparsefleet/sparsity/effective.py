"""What the connections of a chain of layers are good for: effective ones, and units that lack inputs or outputs.

An effective connection lies on a path from an input to an output (arXiv 2107.02306, section 3). A unit is dead where it has no live incoming
or no live outgoing connection, each on the side on which the network has any: inputs need outgoing ones only, outputs incoming ones only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK = 1 << 20
Sites = Callable[[], Tensor] | None


class ChainCounts(NamedTuple):
    """Counts of a chain.

    Attributes:
        effective: connections of each layer that lie on a path from an input to an output.
        dead_units: hidden and output units without a live incoming or without a live outgoing connection.
        unused_inputs: inputs of the network without a live outgoing connection.
    """

    effective: list[int]
    dead_units: int
    unused_inputs: int


class Ends(NamedTuple):
    """Which units a layer's connections touch: ``(n_out,)`` and ``(n_in,)`` bool."""

    outputs: Tensor
    inputs: Tensor


def effective_nnz(layers: Sequence[tuple[tuple[int, int], Sites]]) -> list[int] | None:
    """Effective connections of each layer of a chain, or None if the layers do not form one; arguments as for ``chain_counts``."""
    found = chain_counts(layers)
    return None if found is None else found.effective


def chain_counts(layers: Sequence[tuple[tuple[int, int], Sites]]) -> ChainCounts | None:
    """The counts of a chain of layers, or None if the layers do not form one.

    Only one layer's sites are held at a time, and their rows and columns in parts. Where every unit is alive, which is the usual case, the
    connections are looked at once.

    Args:
        layers: input to output: ``(n_out, n_in)`` and a function that gives the ``(nnz,)`` ascending flat sites; None where all are connected.
    """
    if any(before[0][0] != after[0][1] for before, after in pairwise(layers)):
        return None
    if not layers:
        return ChainCounts([], 0, 0)
    ends = [touched(shape, sites() if sites is not None else None) for shape, sites in layers]
    reached = [torch.ones(layers[0][0][1], dtype=torch.bool)]
    for (shape, sites), end in zip(layers, ends, strict=True):
        alive = end.outputs
        if not bool(reached[-1].all()):
            alive = _followed(shape, sites, reached[-1])
        reached.append(alive)
    counts, useful = [], torch.ones(layers[-1][0][0], dtype=torch.bool)
    for (shape, sites), end, alive in zip(reversed(layers), reversed(ends), reversed(reached[:-1]), strict=True):
        n, useful = _counted(shape, sites, end, alive, useful)
        counts.append(n)
    hidden = sum(int((~(before.outputs & after.inputs)).sum()) for before, after in pairwise(ends))
    return ChainCounts(counts[::-1], hidden + int((~ends[-1].outputs).sum()), int((~ends[0].inputs).sum()))


def touched(shape: tuple[int, int], flat: Tensor | None) -> Ends:
    """Units of a layer that have a live connection.

    Args:
        flat: ``(nnz,)`` ascending flat sites; None where all are connected.
    """
    if flat is None:
        return Ends(*(torch.ones(n, dtype=torch.bool) for n in shape))
    rows, cols = (torch.zeros(n, dtype=torch.bool, device=flat.device) for n in shape)
    for row, col in parts(flat, shape[1]):
        rows[row], cols[col] = True, True
    return Ends(rows.cpu(), cols.cpu())


def parts(flat: Tensor, n_in: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and columns of the sites, some at a time, where the sites lie."""
    for part in torch.split(flat, _CHUNK):
        row = torch.div(part, n_in, rounding_mode="trunc")
        yield row, part - row * n_in


def _followed(shape: tuple[int, int], sites: Sites, reached: Tensor) -> Tensor:
    """``(n_out,)`` units that have a connection from a reached input."""
    if sites is None:
        return torch.full((shape[0],), bool(reached.any()))
    flat = sites()
    alive, reached = torch.zeros(shape[0], dtype=torch.bool, device=flat.device), reached.to(flat.device)
    for row, col in parts(flat, shape[1]):
        alive[row[reached[col]]] = True
    return alive.cpu()


def _counted(shape: tuple[int, int], sites: Sites, end: Ends, alive: Tensor, useful: Tensor) -> tuple[int, Tensor]:
    """Connections from alive inputs to useful outputs, and the inputs that have one."""
    if sites is None:
        return int(useful.sum()) * int(alive.sum()), alive & bool(useful.any())
    flat = sites()
    if bool(alive.all()) and bool(useful.all()):
        return flat.numel(), end.inputs
    n, before = 0, torch.zeros(shape[1], dtype=torch.bool, device=flat.device)
    alive, useful = alive.to(flat.device), useful.to(flat.device)
    for row, col in parts(flat, shape[1]):
        on_path = useful[row] & alive[col]
        n += int(on_path.sum())
        before[col[on_path]] = True
    return n, before.cpu()
