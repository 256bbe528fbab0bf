"""Fixed fan-in: every output unit has equally many inputs, drawn at random (the constant fan-in of SRigL, drawn once)."""

import torch
from torch import Tensor

from sparsefleet import Connectivity, Rng, UserError, hookimpl


class FixedFanIn(Connectivity):
    """``nnz // n_out`` inputs per output unit; where nnz is no multiple of ``n_out``, units chosen at random have one more."""

    name = "fixed-fan-in"
    paper = "arXiv 2305.02299, section 3"
    topology = "constant-fan-in"

    def draw(self, shape: tuple[int, int], nnz: int, rng: Rng) -> Tensor:
        """``(2, nnz)`` in ascending order of the site; the inputs of a unit are any subset with equal probability."""
        n_out, n_in = shape
        fan_in, rest = divmod(nnz, n_out)
        if nnz > n_out * n_in:
            raise UserError(f"a fan-in of {fan_in + (rest > 0):,} does not fit in a layer of {n_out} x {n_in}: a unit has {n_in:,} inputs")
        counts = torch.full((n_out,), fan_in)
        counts[rng.spawn("one more").distinct(rest, n_out)] += 1
        flat = rng.distinct_in_groups(counts, torch.tensor(n_in).expand(n_out))  # (nnz,) int64
        return torch.stack([flat // n_in, flat % n_in])


@hookimpl
def sparsefleet_connectivities() -> list[type[Connectivity]]:
    """Registers this module's connectivity."""
    return [FixedFanIn]
