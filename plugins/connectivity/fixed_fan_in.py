"""Fixed fan-in: every output unit has equally many inputs, drawn at random (the constant fan-in of SRigL, drawn once)."""

import torch
from pydantic import Field
from torch import Tensor

from sparsefleet import Connectivity, Rng, UserError, hookimpl


class FixedFanIn(Connectivity):
    """``nnz // n_out`` inputs per output unit; where nnz is no multiple of ``n_out``, units chosen at random have one more.

    With ``fan_in`` every layer has that many inputs per unit whatever its width, or all its inputs if they are fewer; the density of the trial
    must then be the one that this comes to, within 1 %.
    """

    name = "fixed-fan-in"
    paper = "arXiv 2305.02299, section 3"
    topology = "constant-fan-in"
    settled_by = "fan_in"

    fan_in: int | None = Field(None, ge=1, description="inputs per unit in every layer; null: as the density asks, layer by layer")

    def nnz_of(self, layer: str, shape: tuple[int, int], asked: int) -> int:
        """What ``fan_in`` comes to, if it is given."""
        return asked if self.fan_in is None else min(self.fan_in, shape[1]) * shape[0]

    def draw(self, shape: tuple[int, int], nnz: int, rng: Rng) -> Tensor:
        """``(2, nnz)`` in ascending order of the site; the inputs of a unit are any subset with equal probability."""
        n_out, n_in = shape
        fan_in, rest = divmod(nnz, n_out)
        if nnz > n_out * n_in:
            raise UserError(f"a fan-in of {fan_in + (rest > 0):,} does not fit in a layer of {n_out} x {n_in}: a unit has {n_in:,} inputs")
        counts = torch.full((n_out,), fan_in)
        counts[rng.spawn("one more").distinct(rest, n_out)] += 1
        flat = rng.distinct_in_groups(counts, torch.tensor(n_in).expand(n_out))  # (nnz,) int64
        sites = flat.new_empty((2, nnz))
        torch.div(flat, n_in, rounding_mode="floor", out=sites[0])
        torch.remainder(flat, n_in, out=sites[1])
        return sites


@hookimpl
def sparsefleet_connectivities() -> list[type[Connectivity]]:
    """Registers this module's connectivity."""
    return [FixedFanIn]
