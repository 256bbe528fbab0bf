from __future__ import annotations

import math

import pytest
import torch

from sparsefleet.sparsity.unevenness import unevenness


@pytest.mark.parametrize(("unit", "n", "expected"), [([0, 1, 2], 3, 0.0), ([0, 0, 0], 3, math.sqrt(2)), ([0, 0, 0, 1], 2, 0.5)])
def test_by_hand(unit: list[int], n: int, expected: float) -> None:
    """Counts 3, 0, 0: mean 1, deviation sqrt(2). Counts 3, 1: mean 2, deviation 1."""
    assert unevenness(torch.tensor(unit), n) == pytest.approx(expected)
