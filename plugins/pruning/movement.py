"""Movement pruning (arXiv 2005.07683, section 4): keeps the weights that training moves away from zero."""

import torch
from torch import Tensor

from sparsefleet import Connections, PluginError, Pruner, hookimpl


class Movement(Pruner):
    """Scores accumulate minus gradient times weight at every site, kept or not, and each pruning keeps the highest of all sites.

    A removed weight keeps its value and its score goes on, so that it may return. Made for fine-tuning (``start: twin``) and a cubic schedule.
    """

    name = "movement"
    paper = "arXiv 2005.07683, section 4, hard movement pruning"
    rule = "W' = W * Top_k(S); after each backward pass S <- S - (dL/dW') * W at every site, W as it was in that pass (straight-through)"
    cannot = (
        "No pruning at step 0: nothing has moved yet. The paper's constant learning rate of the scores scales them all and changes no order, so"
        " it is no parameter; its authors' code trains the scores with Adam instead. The threshold variant (soft movement pruning) is not here."
        " After the last pruning the kept set stays."
    )
    needs_dense = True
    revives = True

    def before_step(self, conn: Connections) -> None:
        """Accumulates the score of every site."""
        dense = conn.dense
        assert dense is not None  # needs_dense
        if dense.grad is None:  # the layer had no part in this pass
            return
        if "score" not in dense.state:
            dense.state["score"] = torch.zeros_like(dense.weight)
        dense.state["score"].addcmul_(dense.grad, dense.weight, value=-1)

    def score_sites(self, conn: Connections) -> Tensor:
        """``(n_out, n_in)`` accumulated scores.

        Raises:
            PluginError: no step has been made.
        """
        assert conn.dense is not None
        if "score" not in conn.dense.state:
            raise PluginError(
                f"layer {conn.layer!r}: movement scores accumulate in training, and no step has been made",
                fix="schedule: {cubic: {begin: 0.1, end: 0.75}}, or a one-shot later than 0",
            )
        return conn.dense.state["score"]


@hookimpl
def sparsefleet_pruners() -> list[type[Pruner]]:
    """Registers this module's pruner."""
    return [Movement]
