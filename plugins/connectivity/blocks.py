"""Blocks: whole tiles of the weight matrix, chosen at random, are connected; the others are not."""

import torch
from pydantic import Field
from torch import Tensor

from sparsefleet import Connectivity, Rng, UserError, hookimpl


class Blocks(Connectivity):
    """Tiles of ``size`` outputs by ``size`` inputs, smaller at a ragged edge; every order in which tiles are taken is equally likely.

    The last tile taken is a random part of a tile where nnz does not come out even, so the count is exact: a multiple of ``size ** 2`` on
    a layer whose sides are multiples of ``size`` has whole tiles alone.
    """

    name = "blocks"
    paper = "arXiv 1711.02782, section 3 (as a topology)"
    topology = "block"

    size: int = Field(4, ge=1, le=1024, description="units per side of a tile")

    def draw(self, shape: tuple[int, int], nnz: int, rng: Rng) -> Tensor:
        """``(2, nnz)`` in ascending order of the tile, then of the place in it."""
        n_out, n_in = shape
        if nnz > n_out * n_in:
            raise UserError(f"{nnz} connections do not fit in a layer of {n_out} x {n_in}")
        tile, counts = self._tiles(shape, nnz, rng)
        wide = -(-n_in // self.size)
        top, left = tile // wide * self.size, tile % wide * self.size
        height, width = (n_out - top).clamp(max=self.size), (n_in - left).clamp(max=self.size)
        area = height * width
        place = rng.distinct_in_groups(counts, area)  # (nnz,) int64, in the chosen tiles one after another
        of = torch.repeat_interleave(counts)
        place -= (torch.cumsum(area, 0) - area)[of]
        return torch.stack([top[of] + place // width[of], left[of] + place % width[of]])

    def _tiles(self, shape: tuple[int, int], nnz: int, rng: Rng) -> tuple[Tensor, Tensor]:
        """``(tiles,)`` ascending numbers of the chosen tiles, and how many connections each has."""
        n_out, n_in = shape
        high, wide = -(-n_out // self.size), -(-n_in // self.size)
        edge_out, edge_in = n_out - (high - 1) * self.size, n_in - (wide - 1) * self.size
        n_least = min(high * wide, -(-nnz // (min(edge_out, self.size) * min(edge_in, self.size))))  # enough, if all were the smallest
        chosen = rng.spawn("tiles").distinct(n_least, high * wide)
        order = chosen[torch.argsort(rng.spawn("order").uniform(n_least), stable=True)]
        area = torch.where(order // wide == high - 1, edge_out, self.size) * torch.where(order % wide == wide - 1, edge_in, self.size)
        before = torch.cumsum(area, 0) - area
        counts = torch.minimum(area, nnz - before)
        order, counts = order[counts > 0], counts[counts > 0]
        ascending = torch.argsort(order)
        return order[ascending], counts[ascending]


@hookimpl
def sparsefleet_connectivities() -> list[type[Connectivity]]:
    """Registers this module's connectivity."""
    return [Blocks]
