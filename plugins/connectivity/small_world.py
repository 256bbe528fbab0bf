"""Small-world connectivity: most connections are short, a few are long; the probability falls with the distance as a power law.

Units stand on one line: those of the wider side at 0, 1, 2 …, those of the narrower side spread evenly over the same length. A site whose
two units are d apart is connected with probability ``(1 + d) ** -exponent``. The exponent is the one at which the expected count is nnz,
unless it is given; then all probabilities are scaled by one factor, and at most 1.

Sites are drawn distance by distance, so nothing of size out x in is ever held. The expected counts of the distances are rounded together
(systematic sampling: one offset for all), hence they sum to exactly nnz and every site keeps its probability.
"""

import math
from collections.abc import Callable, Iterator

import torch
from pydantic import Field
from torch import Tensor

from sparsefleet import Connectivity, Rng, UserError, hookimpl

_MOST_LOCAL = 2.0
"""A larger exponent leaves no long connections: their mean distance would no longer grow with the layer."""
_CHUNK = 1 << 17


class SmallWorld(Connectivity):
    """Decays with the distance between input and output unit, mostly local with a few long connections, for any two widths."""

    name = "small-world"
    paper = "doi:10.1038/30918; Kleinberg, doi:10.1038/35022643, for the power law"

    exponent: float | None = Field(
        None, ge=0, le=8, description="how fast probability falls with distance; null: as fast as the density allows, at most 2"
    )

    def draw(self, shape: tuple[int, int], nnz: int, rng: Rng) -> Tensor:
        """``(2, nnz)`` in ascending order of the distance; memory O(nnz), time O(nnz + n_out + n_in)."""
        n_out, n_in = shape
        if nnz > n_out * n_in:
            raise UserError(f"{nnz} connections do not fit in a layer of {n_out} x {n_in}")
        line = Line(max(shape), min(shape))
        distance, counts = _whole(line, *self._law(line, nnz), nnz, float(rng.spawn("offset").uniform(1)))
        sites = line.sites(distance)
        of = torch.repeat_interleave(counts)  # (nnz,) int64
        rank = rng.distinct_in_groups(counts, sites) - (torch.cumsum(sites, 0) - sites)[of]
        near, far = line.units(rank, distance[of])
        return torch.stack([near, far] if n_out < n_in else [far, near])

    def _law(self, line: "Line", nnz: int) -> tuple[float, float]:
        """The exponent and the factor of the power law at which nnz connections are expected, or hardly more."""
        exponent = self.exponent
        if exponent is None:
            exponent = _bisect(lambda e: line.expected(e, 1.0), 0.0, _MOST_LOCAL, nnz)
            if exponent < _MOST_LOCAL - 1e-9:
                return exponent, 1.0
        if nnz == 0:
            return exponent, 0.0
        most, least = exponent * math.log1p(line.wide), math.log(nnz / (line.wide * line.narrow))
        return exponent, math.exp(-_bisect(lambda x: line.expected(exponent, math.exp(-x)), -most, -least, nnz))


class Line:
    """The two sides of a layer on one line: wide units at 0, 1, …, the k-th narrow one in the middle of its share, rounded down."""

    def __init__(self, wide: int, narrow: int) -> None:
        self.wide, self.narrow = wide, narrow

    def position(self, k: Tensor) -> Tensor:
        """Where narrow units stand."""
        return (2 * k + 1) * self.wide // (2 * self.narrow)

    def before(self, place: Tensor) -> Tensor:
        """How many narrow units stand before a place: those k with ``position(k) < place``."""
        return -(-2 * self.narrow * place // self.wide) // 2

    def n_left(self, distance: Tensor) -> Tensor:
        """How many sites have the wide unit this far left of the narrow one; at distance 0 all count as right."""
        return torch.where(distance > 0, self.narrow - self.before(distance), 0)

    def sites(self, distance: Tensor) -> Tensor:
        """How many sites there are at each distance."""
        return self.n_left(distance) + self.before(self.wide - distance)

    def units(self, rank: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Narrow and wide units of the sites with these ranks among all sites of their distance."""
        to_right = rank - self.n_left(distance)
        near = torch.where(to_right < 0, self.before(distance) + rank, to_right)
        return near, self.position(near) + torch.where(to_right < 0, -distance, distance)

    def distances(self) -> Iterator[Tensor]:
        """All distances, in parts."""
        for start in range(0, self.wide, _CHUNK):
            yield torch.arange(start, min(start + _CHUNK, self.wide))

    def law(self, distance: Tensor, exponent: float, factor: float) -> Tensor:
        """float64 expected connections at each distance."""
        return self.sites(distance) * ((1.0 + distance.double()) ** -exponent * factor).clamp(max=1.0)

    def expected(self, exponent: float, factor: float) -> float:
        """Expected connections in all."""
        return sum(float(self.law(distance, exponent, factor).sum()) for distance in self.distances())


def _bisect(falls: Callable[[float], float], low: float, high: float, target: float) -> float:
    """Where a falling function passes ``target``, on the side where it is not below."""
    for _ in range(52):
        middle = (low + high) / 2
        low, high = (middle, high) if falls(middle) >= target else (low, middle)
    return low


def _whole(line: Line, exponent: float, factor: float, nnz: int, offset: float) -> tuple[Tensor, Tensor]:
    """Distances that have connections, and how many: each expected count rounded up or down, the sum exactly nnz."""
    parts, done, upto = [], 0, 0.0
    for distance in line.distances():
        total = upto + torch.cumsum(line.law(distance, exponent, factor), 0)
        edges = torch.floor(total + offset).long().clamp(max=nnz)
        counts = torch.diff(edges, prepend=torch.tensor([done]))
        parts.append((distance[counts > 0], counts[counts > 0]))
        done, upto = int(edges[-1]), float(total[-1])
    distance, counts = (torch.cat(part) for part in zip(*parts, strict=True))
    counts[-1:] += nnz - done  # a rounding error of the sum: at most one
    return distance, counts


@hookimpl
def sparsefleet_connectivities() -> list[type[Connectivity]]:
    """Registers this module's connectivity."""
    return [SmallWorld]
