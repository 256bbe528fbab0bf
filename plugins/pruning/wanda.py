"""Wanda (arXiv 2306.11695, Eq. 1): pruning by weights and activations, without a weight update."""

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor

from sparsefleet import Calibration, Pruner, hookimpl


class Wanda(Pruner):
    """Scores a connection by its magnitude times the norm of the input it meets, compared within each output unit.

    Layers are pruned from input to output, each with the inputs that the pruned layers before it give. Weights that stay do not change.
    """

    name = "wanda"
    paper = "arXiv 2306.11695, Eq. 1"
    rule = "score_ij = |W_ij| * ||X_j||_2 over all examples (and positions: what a kernel element sees), compared within row i"
    cannot = "distribution: global (layers are scored one after another); convolutions with groups."
    needs_calibration = True
    per_row = True
    sequential = True

    examples: int = Field(128, ge=1, description="training examples that the norms are taken over")

    def calibration_examples(self, n_classes: int) -> int:
        """``examples``."""
        return self.examples

    def score_all(self, calibration: Calibration) -> Mapping[str, Tensor]:
        """``(nnz,)`` float64 for every layer."""
        norms = calibration.input_norms()
        return {name: conn.weight.abs().double() * norms[name][conn.col] for name, conn in calibration.layers.items()}


@hookimpl
def sparsefleet_pruners() -> list[type[Pruner]]:
    """Registers this module's pruner."""
    return [Wanda]
