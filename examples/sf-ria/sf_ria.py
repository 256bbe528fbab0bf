"""RIA: relative importance and activations.

Zhang et al., Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models, ICLR 2024 (OpenReview Tr0lPx9woF).
"""

from collections.abc import Mapping

import torch
from pydantic import Field
from sparsefleet import Calibration, Connections, Pruner, hookimpl
from torch import Tensor


class RiaPruner(Pruner):
    """Scores a connection by its shares in the sums of its input and its output unit, times a power of the norm of the input it meets.

    Layers are pruned from input to output, each as a whole and with the inputs that the pruned layers before it give.
    """

    name = "ria"
    paper = "OpenReview Tr0lPx9woF (ICLR 2024), the metric RIA with its a = 0.5"
    rule = "score_ij = (|W_ij| / sum_k |W_kj| + |W_ij| / sum_k |W_ik|) ||X_j||_2^a, sums over live connections"
    cannot = "distribution: global (layers are scored one after another); the paper's channel permutation for n:m is not done."
    needs_calibration = True
    sequential = True
    power: float = Field(0.5, ge=0, le=4, description="a, the exponent of the input's norm; 0 is relative importance alone")
    examples: int = Field(128, ge=1, description="training examples that the norms are taken over")

    def calibration_examples(self, n_classes: int) -> int:
        return self.examples

    def score_all(self, calibration: Calibration) -> Mapping[str, Tensor]:
        norms = calibration.input_norms()
        return {name: self.relative(conn) * norms[name].double()[conn.col] ** self.power for name, conn in calibration.layers.items()}

    def relative(self, conn: Connections) -> Tensor:
        """`(nnz,)` share of the weight in its input unit's sum plus its share in its output unit's."""
        size = conn.weight.detach().abs().double()
        by_input = size.new_zeros(conn.n_in).index_add_(0, conn.col, size)
        tiny = torch.finfo(size.dtype).tiny
        return size / by_input.clamp(min=tiny)[conn.col] + size / conn.per_row(size).clamp(min=tiny)[conn.row]


@hookimpl
def sparsefleet_pruners() -> list[type[Pruner]]:
    return [RiaPruner]
