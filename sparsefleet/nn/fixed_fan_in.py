"""FixedFanInLinear: every output unit has equally many inputs, ``(n_out, fan_in)`` values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsefleet.errors import UserError
from sparsefleet.nn.indexed import IndexedLinear
from sparsefleet.rng import Rng


class FixedFanInLinear(IndexedLinear):
    """A ``SparseLinear`` whose output units all have ``fan_in`` inputs: no row pointer, balanced rows, shapes that rewiring keeps.

    Args:
        fan_in: connections per output unit, in place of ``density``, which is rounded to a whole fan-in of at least 1.

    Raises:
        UserError: connections whose fan-in is not constant, with the smallest and the largest.
    """

    execution = "sparse_fixed_fan_in"
    topology = "constant-fan-in"
    indices = ("col",)

    def __init__(
        self, in_features: int, out_features: int, density: float = 0.1, *positional: Any, fan_in: int | None = None, **options: Any
    ) -> None:
        if fan_in is not None and not (isinstance(fan_in, int) and 1 <= fan_in <= in_features):
            raise UserError(f"a fan-in of {fan_in} does not fit: a unit has {in_features} inputs")
        super().__init__(in_features, out_features, fan_in / in_features if fan_in else density, *positional, **options)

    def _draw(self, density: float, rng: Rng) -> Tensor:
        fan_in = max(1, round(density * self.in_features))
        counts = torch.full((self.out_features,), fan_in)
        return rng.distinct_in_groups(counts, torch.full_like(counts, self.in_features))

    def _fan_in(self, per_row: Tensor) -> int | None:
        least, most = (int(value) for value in torch.aminmax(per_row))
        if least != most:
            raise UserError(
                f"layer {self.layer_name or type(self).__name__!r} holds a constant fan-in, and these connections have {least} to {most}",
                fix="use csr, or connections with a constant fan-in",
            )
        return least

    def _shaped(self, values: Tensor) -> Tensor:
        return values.view(self.out_features, values.numel() // self.out_features)

    def _stored_fan_in(self) -> int | None:
        return self.fan_in

    @property
    def fan_in(self) -> int:
        """Connections per output unit."""
        return self.values_.shape[1]

    def _rows_of(self, stored: dict[str, Tensor]) -> Tensor | str:
        shape = stored["values_"].shape
        if len(shape) != 2 or shape[0] != self.out_features:
            return f"values of shape {tuple(shape)}, expected ({self.out_features}, fan-in)"
        return torch.repeat_interleave(torch.arange(self.out_features, device=stored["col"].device), shape[1])
