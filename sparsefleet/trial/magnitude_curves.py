"""Preserved magnitude: how much of the weights' total magnitude a pruning keeps, and how that compares with a random choice (source 000, section 3).

``preserved_magnitude`` is the sum of |w| over what is kept, over the sum before. A random choice of as many connections in every layer keeps, on
average, the share ``kept / before`` of each layer's sum; ``preserved_magnitude_vs_random`` is ours over that: 1 for a random pruner, the more the
better the large weights were chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sparsefleet.trial.training import Training

Sums = dict[str, tuple[float, int]]
"""By layer: the sum of |w| over its connections, and how many they are."""


def magnitudes(training: Training) -> Sums:
    """The sums as they are; empty for a pruner that lets connections return, whose weights are not those that were kept."""
    if training.pruner is None or training.pruner.revives:
        return {}
    return {
        name: (float(torch.linalg.vector_norm(module.values(), 1, dtype=torch.float64)), module.nnz)
        for name, module in training.network.sparse.items()
    }


def tell_preserved(training: Training, before: Sums) -> None:
    """What a pruning kept.

    Args:
        before: ``magnitudes`` before the pruning.
    """
    log, step = training.log, training.step
    total = sum(magnitude for magnitude, _ in before.values())
    if total == 0.0:
        return
    after = magnitudes(training)
    kept = sum(magnitude for magnitude, _ in after.values())
    by_chance = sum(magnitude * after[name][1] / n for name, (magnitude, n) in before.items() if n)
    log.add("preserved_magnitude", step, kept / total, thin=True)
    if by_chance > 0.0:
        log.add("preserved_magnitude_vs_random", step, kept / by_chance, thin=True)
