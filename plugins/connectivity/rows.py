"""Rows: whole output units, chosen at random, have all their inputs; the others have none."""

import torch
from torch import Tensor

from sparsefleet import Connectivity, Rng, UserError, hookimpl


class Rows(Connectivity):
    """``nnz // n_in`` whole rows; what is left of nnz is a random part of one further row, so the count is exact."""

    name = "rows"
    paper = "arXiv 1608.08710, section 3 (filters, as a topology)"
    topology = "row"

    def draw(self, shape: tuple[int, int], nnz: int, rng: Rng) -> Tensor:
        """``(2, nnz)`` in ascending order of the site."""
        n_out, n_in = shape
        if nnz > n_out * n_in:
            raise UserError(f"{nnz} connections do not fit in a layer of {n_out} x {n_in}")
        whole, rest = divmod(nnz, n_in)
        order = rng.spawn("rows").distinct(whole + (rest > 0), n_out)
        counts = torch.full((order.numel(),), n_in)
        if rest:
            counts[rng.spawn("partial").integers(1, order.numel())] = rest
        place = rng.distinct_in_groups(counts, torch.full((order.numel(),), n_in))  # (nnz,) int64, in the chosen rows one after another
        return torch.stack([order[place // n_in], place % n_in])


@hookimpl
def sparsefleet_connectivities() -> list[type[Connectivity]]:
    """Registers this module's connectivity."""
    return [Rows]
