"""LAMP (arXiv 2010.07611, section 2): layer-adaptive magnitudes."""

import torch
from torch import Tensor

from sparsefleet import Connections, Pruner, hookimpl


class Lamp(Pruner):
    """Scores a connection by its squared weight over the sum of all squares of its layer that are not smaller.

    Made for ``distribution: global``: the order within a layer is that of magnitudes, and each layer's share follows from the scores.
    """

    name = "lamp"
    paper = "arXiv 2010.07611, section 2"
    rule = "score(u) = w_u^2 / sum of w_v^2 over v >= u, the weights of a layer in ascending order of |w|"
    cannot = "With another distribution than global it is magnitude pruning."
    made_for = "global"

    def score(self, conn: Connections) -> Tensor:
        """``(nnz,)`` float64 in [0, 1]; the largest weight of a layer has 1. Of equal weights the earlier counts as the larger."""
        square = conn.weight.double().square()
        largest_first = torch.sort(square, descending=True, stable=True)
        total = torch.cumsum(largest_first.values, 0)  # float32 would stop counting after some 1e7 terms
        share = torch.where(total > 0, largest_first.values / total, 0.0)
        return torch.empty_like(square).scatter_(0, largest_first.indices, share)


@hookimpl
def sparsefleet_pruners() -> list[type[Pruner]]:
    """Registers this module's pruner."""
    return [Lamp]
