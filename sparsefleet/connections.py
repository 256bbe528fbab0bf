"""Connections: the live weights of one layer as 1-D tensors, the only thing that a method plugin sees."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sparsefleet.errors import InvalidMask, PluginError
from sparsefleet.rng import Rng

BestAbsent = Callable[[Tensor, int], Tensor]


def _unseeded(flat: Tensor) -> Tensor:
    return Rng("unseeded").at(flat) * 2.0 - 1.0


@dataclass
class DenseValues:
    """Values at every site of a dense-stored layer, for methods that declare ``needs_dense``.

    Attributes:
        weight: ``(n_out, n_in)``, the stored weight before the mask.
        grad: ``(n_out, n_in)``, the gradient of the loss by the *masked* weight, or None before the first backward.
        state: the method's own dense tensors, checkpointed by the core.
    """

    weight: Tensor
    grad: Tensor | None
    state: dict[str, Tensor]


@dataclass
class Connections:
    """The stored connections of one layer, in ascending order of ``flat = row * n_in + col``.

    A convolution's weight ``(out, in, kh, kw)`` is seen as the matrix ``(out, in * kh * kw)``.

    Attributes:
        layer: the module's qualified name.
        shape: ``(n_out, n_in)`` of the weight as a matrix.
        row: ``(nnz,)`` int64, output index.
        col: ``(nnz,)`` int64, input index.
        weight: ``(nnz,)``. ``Rewirer.on_step`` may write into it; nothing else may.
        grad: ``(nnz,)`` gradient of the loss by ``weight``, or None.
        state: the method's own ``(nnz,)`` tensors; the core re-indexes them at every topology change and checkpoints them.
        rng: draws for this layer at this step.
        is_last: no other layer of the method comes after it.
        initial_draw: the draws in [-1, 1) behind the initial weights of ``(k,)`` flat sites, live or not: the same at every step.
        memory: the method's own tensors of any shape, which no topology change touches, e.g. an adapted threshold; ``redistribute`` and
            ``on_step`` may write into it, and the core checkpoints it.
        dense: values at absent sites; only on ``masked`` and only for methods that declare ``needs_dense``.
        constant_fan_in: the layer holds equally many connections per output unit: what grows fills every unit up to the same fan-in.
        kernel: elements of a convolution's kernel: column ``c * kernel + i`` is element i of input channel c.
        tile: the layer holds whole tiles of this many units per side: what grows are the whole tiles nearest to the count asked. 1: sites.
    """

    layer: str
    shape: tuple[int, int]
    row: Tensor
    col: Tensor
    weight: Tensor
    grad: Tensor | None = None
    state: dict[str, Tensor] = field(default_factory=dict)
    rng: Rng = field(default_factory=lambda: Rng("unseeded"))
    is_last: bool = False
    initial_draw: Callable[[Tensor], Tensor] = _unseeded
    memory: dict[str, Tensor] = field(default_factory=dict)
    dense: DenseValues | None = None
    best_absent_by_gradient: BestAbsent | None = None
    best_absent_per_row_by_gradient: Callable[[Tensor, Tensor], Tensor] | None = None
    constant_fan_in: bool = False
    kernel: int = 1
    tile: int = 1

    @property
    def nnz(self) -> int:
        """Number of stored connections."""
        return self.row.numel()

    @property
    def n_out(self) -> int:
        """Output units."""
        return self.shape[0]

    @property
    def n_in(self) -> int:
        """Input units."""
        return self.shape[1]

    @property
    def n_sites(self) -> int:
        """``n_out * n_in``, the number of possible connections."""
        return self.shape[0] * self.shape[1]

    @property
    def density(self) -> float:
        """Stored share of the possible connections."""
        return self.nnz / self.n_sites

    @property
    def flat(self) -> Tensor:
        """``(nnz,)`` int64, ascending, unique."""
        return (self.row * self.n_in).add_(self.col)

    def select(self, keep: Tensor) -> Connections:
        """The connections at ``keep``.

        Args:
            keep: ``(nnz,)`` bool, or ascending int64 positions.
        """
        if keep.dtype == torch.bool:
            keep = torch.nonzero(keep).flatten()  # once, and not for every tensor
        return replace(
            self,
            row=self.row[keep],
            col=self.col[keep],
            weight=self.weight[keep],
            grad=None if self.grad is None else self.grad[keep],
            state={name: values[keep] for name, values in self.state.items()},
        )

    def random_absent(self, k: int, rng: Rng | None = None) -> Tensor:
        """``(2, k)`` int64 absent sites, every k-subset equally likely, in memory O(nnz + k).

        On a layer with ``constant_fan_in`` every subset that fills it up is equally likely; one with tiles gets whole random tiles.

        Raises:
            PluginError: fewer than k sites are absent, or a constant fan-in cannot be reached with k.
        """
        if self.constant_fan_in:
            return self.random_absent_per_row(self.lacking(k), rng)
        if self.tile > 1:
            return self._random_tiles(k, rng or self.rng)
        n_absent = self.n_sites - self.nnz
        if k > n_absent:
            raise PluginError(f"layer {self.layer!r}: asked to grow {k} connections, but only {n_absent} sites are absent")
        return self._absent_at((rng or self.rng).distinct(k, n_absent, self.row.device))

    def random_absent_per_row(self, counts: Tensor, rng: Rng | None = None) -> Tensor:
        """``(2, sum(counts))`` int64 absent sites, ascending: in each row as many as asked, every subset of a row equally likely.

        Args:
            counts: ``(n_out,)`` int64, each at most the row's absent sites.
        """
        return self._absent_at((rng or self.rng).distinct_in_groups(counts, self.n_in - self.per_row()))

    def lacking(self, k: int) -> Tensor:
        """``(n_out,)`` int64: how many of ``k`` new connections each output unit gets, so that all have equally many.

        Raises:
            PluginError: k does not lead to a constant fan-in.
        """
        fan_in, rest = divmod(self.nnz + k, self.n_out)
        per_row = self.per_row()
        counts = torch.rsub(per_row, fan_in)
        if rest or bool((counts < 0).any()):
            most = int(per_row.max())
            raise PluginError(
                f"layer {self.layer!r} holds a constant fan-in: {k} new connections for {self.n_out} units that have up to {most}"
                f" of {self.nnz} cannot give one"
            )
        return counts

    def _absent_at(self, rank: Tensor) -> Tensor:
        """``(2, k)``: the r-th absent site is r plus the number of present sites before it."""
        gaps = self.flat.sub_(torch.arange(self.nnz, device=self.row.device))
        flat = torch.searchsorted(gaps, rank, right=True).add_(rank)
        row = torch.div(flat, self.n_in, rounding_mode="floor")
        return torch.stack([row, flat - row * self.n_in])

    def tiles(self) -> Tensor:
        """``(n,)`` int64 ascending: the tiles that hold a connection, numbered by rows of ``ceil(n_in / tile)``."""
        wide = -(-self.n_in // self.tile)
        present: Tensor = torch.unique((self.row // self.tile) * wide + self.col // self.tile)
        return present

    def _random_tiles(self, k: int, rng: Rng) -> Tensor:
        wide, present = -(-self.n_in // self.tile), self.tiles()
        grid = Connections(self.layer, (-(-self.n_out // self.tile), wide), present // wide, present % wide, self.weight[:0])
        row, col = grid.random_absent(min(n_tiles(k, self.tile), grid.n_sites - grid.nnz), rng)
        flat = sites_of_tiles(row * wide + col, self.shape, self.tile)
        return torch.stack([flat // self.n_in, flat % self.n_in])

    def best_absent(self, k: int, values: Tensor | None = None) -> Tensor:
        """``(2, k)`` int64 absent sites with the largest magnitude of ``values``, ties by position; all of them, if fewer are absent.

        So grow on ``conn.select(keep)``, where a dropped connection is absent: on ``conn`` itself a nearly full layer gives fewer than k. On a
        layer with ``constant_fan_in`` they fill up every output unit; on one with tiles they are the whole tiles of largest sum.

        Args:
            k: how many; ``random_absent`` raises where fewer are absent, and this does not.
            values: ``(n_out, n_in)`` for methods that hold dense values; None means the gradient of the loss, which the layer
                computes in blocks and never holds whole.
        """
        k = min(k, self.n_sites - self.nnz)
        if self.constant_fan_in:
            return self.best_absent_per_row(self.lacking(k), values)
        if values is None:
            if self.best_absent_by_gradient is None:
                raise PluginError(
                    f"layer {self.layer!r} has no gradient at absent sites",
                    cause="the plugin does not declare needs_absent_grad, or no backward pass has run",
                    fix="set needs_absent_grad = True on the plugin class",
                )
            return self.best_absent_by_gradient(self.flat, k)
        score = values.detach().abs().reshape(-1)
        if self.tile > 1:
            return self._best_tiles(score, k)
        score = score.clone()
        score[self.flat] = -math.inf
        flat = torch.sort(torch.argsort(score, descending=True, stable=True)[:k]).values
        return torch.stack([flat // self.n_in, flat % self.n_in])

    def _best_tiles(self, score: Tensor, k: int) -> Tensor:
        high, wide = -(-self.n_out // self.tile), -(-self.n_in // self.tile)
        site = torch.arange(self.n_sites, device=score.device)
        tile = (site // self.n_in // self.tile) * wide + site % self.n_in // self.tile
        total = score.new_zeros(high * wide).index_add_(0, tile, score)
        total[self.tiles()] = -math.inf
        n = min(n_tiles(k, self.tile), high * wide - self.tiles().numel())
        chosen = torch.sort(torch.argsort(total, descending=True, stable=True)[:n]).values
        flat = sites_of_tiles(chosen, self.shape, self.tile)
        return torch.stack([flat // self.n_in, flat % self.n_in])

    def best_absent_per_row(self, counts: Tensor, values: Tensor | None = None) -> Tensor:
        """``(2, sum(counts))`` int64 absent sites: in each row as many as asked with the largest magnitude, ties by position, ascending.

        Args:
            counts: ``(n_out,)`` int64, each at most the row's absent sites.
            values: as for ``best_absent``.
        """
        values = values if values is not None or self.dense is None else self.dense.grad
        if values is None:
            if self.best_absent_per_row_by_gradient is None:
                raise PluginError(f"layer {self.layer!r} does not rank the gradient of absent sites within output units")
            return self.best_absent_per_row_by_gradient(self.flat, counts)
        score = values.detach().abs().reshape(-1).clone()
        score[self.flat] = -math.inf
        best_first = torch.argsort(score.view(self.shape), dim=1, descending=True, stable=True)
        chosen = torch.arange(self.n_in, device=score.device) < counts[:, None]
        row = torch.arange(self.n_out, device=score.device)[:, None].expand_as(best_first)[chosen]
        flat = torch.sort(row * self.n_in + best_first[chosen]).values
        return torch.stack([flat // self.n_in, flat % self.n_in])

    def per_row(self, values: Tensor | None = None) -> Tensor:
        """``(n_out,)`` sum of ``values`` (default: ones, that is the fan-in) over each output unit."""
        if values is None and self.nnz < self.n_out:  # few connections: one count a unit and nothing else of that size
            return torch.bincount(self.row, minlength=self.n_out)
        if values is None:  # rows ascend
            return torch.diff(torch.searchsorted(self.row, torch.arange(self.n_out + 1, device=self.row.device)))
        return torch.zeros(self.n_out, dtype=values.dtype, device=values.device).index_add_(0, self.row, values)


def n_tiles(k: int, tile: int) -> int:
    """How many whole tiles are nearest to ``k`` connections; at least one, if any is asked."""
    return max(1, round(k / tile**2)) if k else 0


def sites_of_tiles(tiles: Tensor, shape: tuple[int, int], tile: int) -> Tensor:
    """``(nnz,)`` int64 ascending flat sites of whole tiles; those at a ragged edge are smaller.

    Args:
        tiles: ``(n,)`` int64, numbered by rows of ``ceil(n_in / tile)``.
        shape: ``(n_out, n_in)``.
        tile: units per side.
    """
    n_out, n_in = shape
    wide, inner = -(-n_in // tile), torch.arange(tile, device=tiles.device)
    row = ((tiles // wide) * tile)[:, None, None] + inner[:, None]
    col = ((tiles % wide) * tile)[:, None, None] + inner
    inside = (row < n_out) & (col < n_in)
    return torch.sort((row * n_in + col)[inside]).values


def check_sites(sites: Tensor, shape: tuple[int, int], *, layer: str) -> Tensor:
    """``(nnz,)`` int64 ascending flat positions of ``sites``.

    Args:
        sites: ``(2, nnz)`` int64 rows and columns, in any order.

    Raises:
        InvalidMask: wrong shape or dtype, out of range, or duplicates; the message carries the counts.
    """
    n_out, n_in = shape
    if sites.dim() != 2 or sites.shape[0] != 2:
        raise InvalidMask(f"layer {layer!r}: connections must have shape (2, nnz), got {tuple(sites.shape)}")
    if sites.dtype != torch.int64:
        raise InvalidMask(f"layer {layer!r}: connections must be int64, got {sites.dtype}")
    row, col = sites
    if not row.numel():
        return sites[0]
    if any(least < 0 or most >= n for unit, n in ((row, n_out), (col, n_in)) for least, most in (map(int, torch.aminmax(unit)),)):
        inside = (row >= 0) & (row < n_out) & (col >= 0) & (col < n_in)
        n_in_range = int(inside.sum())
        n_twice = n_in_range - torch.unique(row[inside] * n_in + col[inside]).numel()
        more = f", and {n_twice} of the others are duplicates" if n_twice else ""
        raise InvalidMask(f"layer {layer!r}: {row.numel() - n_in_range} of {row.numel()} connections lie outside {n_out} x {n_in}{more}")
    flat: Tensor = (row * n_in).add_(col)
    apart = torch.diff(flat)
    if apart.numel() and int(apart.min()) < 0:
        flat = torch.sort(flat).values
        apart = torch.diff(flat)
    if apart.numel() and not int(apart.min()):
        n_twice = apart.numel() - int(torch.count_nonzero(apart))
        raise InvalidMask(f"layer {layer!r}: {n_twice} of {flat.numel()} connections are duplicates")
    return flat
