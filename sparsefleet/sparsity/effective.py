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

_CHUNK = 1 << 16  # what stays in a cache
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


class Fans(NamedTuple):
    """Live connections of each unit of a layer: ``(n_out,)`` incoming ones, ``(n_in,)`` outgoing ones, int64 on the CPU."""

    incoming: Tensor
    outgoing: Tensor


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
    fans = [fans_of(shape, sites() if sites is not None else None) for shape, sites in layers]
    reached = [torch.ones(layers[0][0][1], dtype=torch.bool)]
    for (_, sites), fan in zip(layers, fans, strict=True):
        reached.append(_followed(sites, fan, reached[-1]))
    counts, useful = [], torch.ones(layers[-1][0][0], dtype=torch.bool)
    for (_, sites), fan, alive in zip(reversed(layers), reversed(fans), reversed(reached[:-1]), strict=True):
        n, useful = _counted(sites, fan, alive, useful)
        counts.append(n)
    hidden = sum(int(((before.incoming == 0) | (after.outgoing == 0)).sum()) for before, after in pairwise(fans))
    return ChainCounts(counts[::-1], hidden + int((fans[-1].incoming == 0).sum()), int((fans[0].outgoing == 0).sum()))


def fans_of(shape: tuple[int, int], flat: Tensor | None) -> Fans:
    """How many live connections each unit of a layer has.

    Args:
        flat: ``(nnz,)`` ascending flat sites; None where all are connected.
    """
    n_out, n_in = shape
    if flat is None:
        return Fans(torch.full((n_out,), n_in), torch.full((n_in,), n_out))
    begins = torch.searchsorted(flat, torch.arange(n_out + 1, device=flat.device) * n_in)
    outgoing = torch.zeros(n_in, dtype=torch.int64, device=flat.device)
    for _, col in parts(flat, n_in):
        outgoing += torch.bincount(col, minlength=n_in)
    return Fans(torch.diff(begins).cpu(), outgoing.cpu())


def parts(flat: Tensor, n_in: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and columns of the sites, some at a time, where the sites lie."""
    for part in torch.split(flat, _CHUNK):
        row = torch.div(part, n_in, rounding_mode="trunc")
        yield row, part - row * n_in


def _followed(sites: Sites, fan: Fans, reached: Tensor) -> Tensor:
    """``(n_out,)`` units that have a connection from a reached input."""
    if sites is None:
        return torch.full(fan.incoming.shape, bool(reached.any()))
    if bool(reached.all()):
        return fan.incoming > 0
    flat = sites()
    lost, unreached = torch.zeros_like(fan.incoming, device=flat.device), ~reached.to(flat.device)
    for row, col in parts(flat, reached.numel()):
        lost += torch.bincount(row[unreached.index_select(0, col)], minlength=lost.numel())  # usually few
    return fan.incoming > lost.cpu()


def _counted(sites: Sites, fan: Fans, alive: Tensor, useful: Tensor) -> tuple[int, Tensor]:
    """Connections from alive inputs to useful outputs, and the inputs that have one."""
    if sites is None:
        return int(useful.sum()) * int(alive.sum()), alive & bool(useful.any())
    n = int(fan.incoming.sum())
    if bool(alive.all()) and bool(useful.all()):
        return n, fan.outgoing > 0
    flat = sites()
    lost = torch.zeros_like(fan.outgoing, device=flat.device)
    alive, useful = alive.to(flat.device), useful.to(flat.device)
    for row, col in parts(flat, alive.numel()):
        off_path = ~(useful.index_select(0, row) & alive.index_select(0, col))
        lost += torch.bincount(col[off_path], minlength=lost.numel())
    return n - int(lost.sum()), fan.outgoing > lost.cpu()
