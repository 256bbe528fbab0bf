"""BlockLinear: square blocks of connections, multiplied as small dense matrices.

Forward and the input's gradient are products in torch's BSR (MKL on the CPU, cuSPARSE on CUDA); the blocks' gradients are batched products of
the blocks' own rows and columns. torch has no backward for BSR, and the one for COO would form the dense gradient.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sparsefleet.connections import Connections, n_tiles, sites_of_tiles
from sparsefleet.errors import UserError
from sparsefleet.nn.absent import best_absent_tiles
from sparsefleet.nn.linear import SparseLinear
from sparsefleet.nn.module import Remap
from sparsefleet.ops.operands import nothing, refuse_tangents, wide as wide_of
from sparsefleet.rng import Rng

_CHUNK_BYTES = 1 << 24


def _bsr(crow: Tensor, col: Tensor, blocks: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():  # torch says once per process that BSR is in beta; our users did not choose it
        warnings.filterwarnings("ignore", message="Sparse BSR tensor support is in beta")
        return torch.sparse_bsr_tensor(crow, col, blocks, shape, check_invariants=False)


class _BlockProduct(torch.autograd.Function):
    """``W x`` for ``(blocks, b, b)`` values and feature-major ``(n_in, batch)`` x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Tensor, index: tuple[Tensor, ...], shape: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, blocks)
        ctx.index, ctx.shape = index, shape
        return _bsr(index[0], index[1], blocks, shape) @ x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, blocks = ctx.saved_tensors
        crow, col, t_crow, t_row, t_order = ctx.index
        grad, size, by_x, by_blocks = grad.contiguous(), blocks.shape[1], None, None
        if ctx.needs_input_grad[0]:
            turned = blocks[t_order].transpose(1, 2).contiguous()
            by_x = _bsr(t_crow, t_row, turned, ctx.shape[::-1]) @ grad
        if ctx.needs_input_grad[1]:
            by_blocks = torch.empty_like(blocks)
            row = torch.repeat_interleave(crow.diff())
            x_tiles, grad_tiles = (side.view(-1, size, side.shape[1]) for side in (x, grad))
            step = max(1, _CHUNK_BYTES // (size * x.shape[1] * x.element_size()))
            for i in range(0, row.numel(), step):
                part = slice(i, i + step)
                torch.bmm(grad_tiles[row[part]], x_tiles[col[part]].transpose(1, 2), out=by_blocks[part])
        return by_x, by_blocks, None, None


class BlockLinear(SparseLinear):
    """A ``SparseLinear`` of whole ``block`` x ``block`` tiles, with ``(blocks, block, block)`` values; ragged edges are padded with zeros.

    Args:
        block: units per side of a tile.

    Raises:
        UserError: connections that are not whole tiles, with their count.
    """

    execution = "sparse_block"
    topology = "block"
    indices = ("tiles",)
    tiles: Tensor
    place: Tensor
    crow: Tensor
    col: Tensor
    t_crow: Tensor
    t_row: Tensor
    t_order: Tensor

    def __init__(self, in_features: int, out_features: int, density: float = 0.1, *positional: Any, block: int = 4, **options: Any) -> None:
        if block < 2:
            raise UserError(f"a block has at least 2 units per side, got {block}")
        self._size = block
        super().__init__(in_features, out_features, density, *positional, **options)
        self.tile = block

    def _grid(self) -> tuple[int, int]:
        return -(-self.out_features // self._size), -(-self.in_features // self._size)

    def _draw(self, density: float, rng: Rng) -> Tensor:
        high, wide = self._grid()
        blocks = rng.distinct(max(1, round(density * high * wide)), high * wide)
        return sites_of_tiles(blocks, self.matrix_shape, self._size)

    def _store(self, conn: Connections) -> None:
        self._take(*self._layout(conn.flat))
        self.values_ = nn.Parameter(self._padded(conn.weight.detach(), self.place, self.tiles.numel()))

    def _layout(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """``(blocks,)`` ascending tiles of ascending sites, and ``(nnz,)`` where each site lies among their values."""
        size, wide = self._size, self._grid()[1]
        row, col = flat // self.in_features, flat % self.in_features
        tiles, of = torch.unique((row // size) * wide + col // size, return_inverse=True)
        if sites_of_tiles(tiles, self.matrix_shape, size).numel() != flat.numel():
            raise UserError(
                f"layer {self.layer_name or type(self).__name__!r} holds whole {size} x {size} blocks; {flat.numel()} connections lie in {tiles.numel()} blocks",
                fix="use csr, or connections in blocks of this size",
            )
        return tiles, (of * size + row % size) * size + col % size

    def _take(self, tiles: Tensor, place: Tensor) -> None:
        high, wide = self._grid()
        row, col = tiles // wide, tiles % wide
        order = torch.argsort(col, stable=True)
        self.register_buffer("tiles", tiles)
        for name, index in (
            ("crow", torch.searchsorted(row, torch.arange(high + 1, device=tiles.device)).int()),
            ("col", col.int()),
            ("t_crow", torch.searchsorted(col[order], torch.arange(wide + 1, device=tiles.device)).int()),
            ("t_row", row[order].int()),
            ("t_order", order),
            ("place", place),
        ):
            self.register_buffer(name, index, persistent=False)

    def _rebuild(self) -> None:
        self._take(*self._layout(self.flat_sites()))

    def _misfit(self, stored: dict[str, Tensor]) -> str:
        (high, wide), tiles, shape = self._grid(), stored["tiles"], (stored["tiles"].numel(), self._size, self._size)
        if stored["values_"].shape != shape:
            return f"values of shape {tuple(stored['values_'].shape)}, expected {shape}"
        n_wrong = int(((tiles < 0) | (tiles >= high * wide)).sum() + (tiles.diff() <= 0).sum())
        return f"{n_wrong} of {tiles.numel()} blocks lie outside or not in ascending order" if n_wrong else ""

    def _padded(self, values: Tensor, place: Tensor, n_blocks: int) -> Tensor:
        stored = values.new_zeros(n_blocks * self._size**2)
        stored[place] = values
        return stored.view(n_blocks, self._size, self._size)

    @property
    def nnz(self) -> int:
        return self.place.numel()

    def as_stored(self, values: Tensor) -> Tensor:
        return self._padded(values, self.place, self.tiles.numel())

    def flat_sites(self) -> Tensor:
        return sites_of_tiles(self.tiles, self.matrix_shape, self._size)

    def values(self) -> Tensor:
        return self.values_.detach().view(-1)[self.place]

    def grad_values(self) -> Tensor | None:
        grad = self.values_.grad
        return None if grad is None else grad.reshape(-1)[self.place]

    def write_values(self, values: Tensor) -> None:
        self.values_.detach().view(-1)[self.place] = values.to(self.values_.dtype)

    def multiply(self, x: Tensor) -> Tensor:
        refuse_tangents(x, self.values_, self.bias)
        (n_out, n_in), size = self.matrix_shape, self._size
        high, wide = self._grid()
        flat = x.reshape(math.prod(x.shape[:-1]), n_in)
        if flat.shape[0] == 0 or self.tiles.numel() == 0:
            out = nothing(flat, self.values_, n_out, x.dtype)
        else:
            kind = wide_of(x, self.values_)
            with torch.autocast(x.device.type, enabled=False):
                turned = nn.functional.pad(flat.t(), (0, 0, 0, wide * size - n_in)).to(kind).contiguous()
                index = self.crow, self.col, self.t_crow, self.t_row, self.t_order
                out = _BlockProduct.apply(turned, self.values_.to(kind), index, (high * size, wide * size))[:n_out].t().to(x.dtype)
        if self.bias is not None:
            out = out + self.bias.to(out.dtype)
        return out.reshape(*x.shape[:-1], n_out)

    def set_topology(self, remap: Remap, values: Tensor) -> None:
        self._take(*self._layout(remap.flat))
        self._set_values(self._padded(values, self.place, self.tiles.numel()))

    def remap_slot(self, slot: Tensor, remap: Remap) -> Tensor:
        tiles, place = self._layout(remap.flat)
        moved = self._padded(remap.gather(slot.reshape(-1)[self.place]), place, tiles.numel())
        return slot.copy_(moved) if moved.shape == slot.shape else moved

    def best_absent(self, present: Tensor, k: int) -> Tensor:
        size, wide = self._size, self._grid()[1]
        taken = torch.unique((present // self.in_features // size) * wide + present % self.in_features // size)
        n = min(n_tiles(k, size), self._grid()[0] * wide - taken.numel())
        flat = sites_of_tiles(best_absent_tiles(*self._watched(), taken, n, size), self.matrix_shape, size)
        return torch.stack([flat // self.in_features, flat % self.in_features])

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, block={self._size}"
