"""RadiX-Net (Robinett and Kepner, arXiv 1905.00416): the mixed-radix topologies and their Kronecker product with a dense network."""

from collections.abc import Sequence
from math import prod
from typing import Annotated

import torch
from pydantic import Field, model_validator
from sparsefleet import Connectivity, Rng, UserError, hookimpl

Digit = tuple[Annotated[str, Field(min_length=1)], Annotated[int, Field(ge=2)]]


class RadixConnectivity(Connectivity):
    """Cyclic shifts by one digit of a mixed-radix number per layer, repeated in wider layers; nothing is random."""

    name = "radix"
    paper = "arXiv 1905.00416: mixed-radix topologies, extended mixed-radix topologies, RadiX-Nets"
    rule = (
        "N' = N_1 ... N_L; digit i has the place value v_i = N_1 ... N_(i-1); its layer is W_i = sum over j < N_i of P^(j v_i), P the cyclic shift "
        "of N' units: input u feeds outputs u + j v_i mod N'. A RadiX-Net has ones(D_in, D_out) (x) W_i, of density N_i / N'; several such "
        "systems follow one another, and the last may have a product that divides N'."
    )
    cannot = (
        "Without radices it is no RadiX-Net: every layer is a first digit (v = 1) of radix density x N', not a whole number as a rule. The last shift "
        "is then cut off at nnz, so that the first units of the wider side have one connection more, and where the narrower width does not divide "
        "the wider one, fan-in is uneven too. With radices both widths of every sparse layer are multiples of N'. All seeds have the same topology, "
        "and rewiring leaves it."
    )
    settled_by = "radices"
    radices: tuple[Digit, ...] = Field((), description="[layer, radix] of every sparse layer, input to output; empty: by the density")
    base: int | None = Field(None, ge=2, description="N'; null: the product of radices, or without them each layer's narrower width")

    @model_validator(mode="after")
    def _systems(self) -> "RadixConnectivity":
        if any(self._base % (self._places[layer] * radix) for layer, radix in self.radices):
            raise ValueError(f"the radices of each round must multiply to base = {self._base}, those of the last to a divisor of it")
        return self

    @property
    def _base(self) -> int:  # 1 where nothing says what it is
        return self.base or prod(radix for _, radix in self.radices)

    @property
    def _places(self) -> dict[str, int]:
        place, places = 1, {}
        for layer, radix in self.radices:
            places[layer] = place
            place = place * radix % self._base or 1
        return places

    def check_layers(self, names: Sequence[str]) -> None:
        given = [layer for layer, _ in self.radices]
        if given and given != list(names):
            raise UserError(f"radix: radices are for {given}, but the sparse layers, input to output, are {list(names)}")

    def nnz_of(self, layer: str, shape: tuple[int, int], asked: int) -> int:
        if any(width % self._base for width in shape):
            raise UserError(f"radix: {layer} has {shape[0]} outputs and {shape[1]} inputs; both must be multiples of {self._base}")
        return shape[0] * shape[1] * dict(self.radices)[layer] // self._base if self.radices else asked

    def sample_layer(self) -> tuple[str, tuple[int, int]]:
        return (self.radices[0][0], (2 * self._base, self._base)) if self.radices else super().sample_layer()

    def draw_for(self, layer: str, shape: tuple[int, int], nnz: int, rng: Rng) -> torch.Tensor:
        return self._sites(shape, nnz, self._places.get(layer, 1))

    def draw(self, shape: tuple[int, int], nnz: int, rng: Rng) -> torch.Tensor:
        return self._sites(shape, nnz, 1)

    def _sites(self, shape: tuple[int, int], nnz: int, place: int) -> torch.Tensor:
        narrow, wide = min(shape), max(shape)
        base = self._base if self._base > 1 else narrow
        turn, unit = torch.arange(nnz) // wide, torch.arange(nnz) % wide  # in a turn every unit of the wider side gets one connection
        step, copy = turn // (narrow // base), turn % (narrow // base)
        shift = step * place % base + step * place // base
        if shape[0] >= shape[1]:
            return torch.stack([unit, copy * base + (unit - shift) % base])
        return torch.stack([copy * base + (unit + shift) % base, unit])


@hookimpl
def sparsefleet_connectivities() -> list[type[Connectivity]]:
    return [RadixConnectivity]
