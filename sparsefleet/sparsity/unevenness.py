"""How unevenly connections spread over units: with the sizes, what decides how fast a sparse layer runs."""

from __future__ import annotations

import torch
from torch import Tensor


def unevenness(per_unit: Tensor) -> float:
    """Standard deviation over mean of the connections per unit; 0 if all have equally many.

    Args:
        per_unit: ``(units,)`` how many connections each unit has, those without any included.
    """
    counts = per_unit.to(torch.float64)
    return float(counts.std(unbiased=False) / counts.mean())
