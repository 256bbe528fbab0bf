"""Random connectivity: every topology with nnz connections is equally likely (an Erdős–Rényi graph with a fixed number of edges)."""

import torch
from torch import Tensor

from sparsefleet import Connectivity, Rng, UserError, hookimpl


class RandomConnectivity(Connectivity):
    """Draws exactly nnz different sites; memory is O(nnz)."""

    name = "random"
    paper = "doi:10.5486/PMD.1959.6.3-4.12, model G(n, M)"

    def draw(self, shape: tuple[int, int], nnz: int, rng: Rng) -> Tensor:
        """``(2, nnz)`` rows and columns in ascending order of the site."""
        n_out, n_in = shape
        if nnz > n_out * n_in:
            raise UserError(f"{nnz} connections do not fit in a layer of {n_out} x {n_in}")
        flat = rng.distinct(nnz, n_out * n_in)  # (nnz,) int64
        sites = flat.new_empty((2, nnz))
        torch.div(flat, n_in, rounding_mode="floor", out=sites[0])
        torch.remainder(flat, n_in, out=sites[1])
        return sites


@hookimpl
def sparsefleet_connectivities() -> list[type[Connectivity]]:
    """Registers this module's connectivity."""
    return [RandomConnectivity]
