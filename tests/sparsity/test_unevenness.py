from __future__ import annotations

import math

import pytest
import torch

from sparsefleet.sparsity.unevenness import unevenness


@pytest.mark.parametrize(("counts", "expected"), [([1, 1, 1], 0.0), ([3, 0, 0], math.sqrt(2)), ([3, 1], 0.5)])
def test_by_hand(counts: list[int], expected: float) -> None:
    """Counts 3, 0, 0: mean 1, deviation sqrt(2). Counts 3, 1: mean 2, deviation 1."""
    assert unevenness(torch.tensor(counts)) == pytest.approx(expected)
