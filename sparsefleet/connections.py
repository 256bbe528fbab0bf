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
        dense: values at absent sites; only on ``masked`` and only for methods that declare ``needs_dense``.
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
    dense: DenseValues | None = None
    best_absent_by_gradient: BestAbsent | None = None
    best_absent_per_row_by_gradient: Callable[[Tensor, Tensor], Tensor] | None = None

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
        return self.row * self.n_in + self.col

    def select(self, keep: Tensor) -> Connections:
        """The connections at ``keep``.

        Args:
            keep: ``(nnz,)`` bool, or ascending int64 positions.
        """
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

        Raises:
            PluginError: fewer than k sites are absent.
        """
        n_absent = self.n_sites - self.nnz
        if k > n_absent:
            raise PluginError(f"layer {self.layer!r}: asked to grow {k} connections, but only {n_absent} sites are absent")
        rank = (rng or self.rng).distinct(k, n_absent, self.row.device)
        # The r-th absent site is r plus the number of present sites before it.
        gaps = self.flat - torch.arange(self.nnz, device=self.row.device)
        flat = rank + torch.searchsorted(gaps, rank, right=True)
        return torch.stack([flat // self.n_in, flat % self.n_in])

    def best_absent(self, k: int, values: Tensor | None = None) -> Tensor:
        """``(2, k)`` int64 absent sites with the largest magnitude of ``values``, ties by position.

        Args:
            k: how many.
            values: ``(n_out, n_in)`` for methods that hold dense values; None means the gradient of the loss, which the layer
                computes in blocks and never holds whole.
        """
        k = min(k, self.n_sites - self.nnz)
        if values is None:
            if self.best_absent_by_gradient is None:
                raise PluginError(
                    f"layer {self.layer!r} has no gradient at absent sites",
                    cause="the plugin does not declare needs_absent_grad, or no backward pass has run",
                    fix="set needs_absent_grad = True on the plugin class",
                )
            return self.best_absent_by_gradient(self.flat, k)
        score = values.detach().abs().reshape(-1).clone()
        score[self.flat] = -math.inf
        flat = torch.sort(torch.argsort(score, descending=True, stable=True)[:k]).values
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
        ones = torch.ones(self.nnz, dtype=torch.int64, device=self.row.device) if values is None else values
        return torch.zeros(self.n_out, dtype=ones.dtype, device=ones.device).index_add_(0, self.row, ones)


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
    outside = int(((row < 0) | (row >= n_out) | (col < 0) | (col >= n_in)).sum())
    if outside:
        raise InvalidMask(f"layer {layer!r}: {outside} of {row.numel()} connections lie outside {n_out} x {n_in}")
    flat = torch.sort(row * n_in + col).values
    n_twice = int((flat[1:] == flat[:-1]).sum())
    if n_twice:
        raise InvalidMask(f"layer {layer!r}: {n_twice} of {flat.numel()} connections are duplicates")
    return flat
