"""How unevenly connections spread over units: with the sizes, what decides how fast a sparse layer runs."""

from __future__ import annotations

import torch
from torch import Tensor


def unevenness(unit: Tensor, n_units: int) -> float:
    """Standard deviation over mean of the connections per unit; 0 if all have equally many.

    Args:
        unit: ``(nnz,)`` int64, the unit of each connection; not empty.
        n_units: units, those without a connection included.
    """
    per_unit = torch.bincount(unit, minlength=n_units).to(torch.float64)
    return float(per_unit.std(unbiased=False) / per_unit.mean())
