"""SET (arXiv 1707.04780, Algorithm 1): after each epoch, drop the weights nearest to zero of either sign, grow at random sites."""

from pydantic import Field
from torch import Tensor

from sparsefleet import Connections, Progress, Rewirer, Rng, hookimpl, lowest_within, share_of


class SET(Rewirer):
    """Drops the share zeta of the smallest positive and of the largest negative weights; an exact zero counts as positive.

    After the last epoch nothing changes, as in the authors' sparse code. The paper's algorithm would drop once more then and grow nothing, which
    leaves fewer connections than were asked.
    """

    name, paper = "set", "arXiv 1707.04780, Algorithm 1"
    rule = "after each epoch but the last drop the share zeta of the smallest w >= 0 and of the largest w < 0; grow as many random absent sites"
    cannot = "It does not choose the first topology: the paper's is random connectivity with distribution er."
    every: int | None = Field(None, ge=1, description="steps between updates; null: the end of every epoch but the last")
    stop: float = Field(1.0, gt=0, le=1, description="share of the training after which the topology stays")
    grown_std: float = Field(0.0, ge=0, description="std of grown weights: 0 in the authors' Keras code, 0.1 in their sparse code")

    def drop_count(self, conn: Connections, progress: Progress) -> int:
        n_positive = int((conn.weight >= 0).sum())
        return share_of(n_positive, self.drop_fraction) + share_of(conn.nnz - n_positive, self.drop_fraction)

    def drop_score(self, conn: Connections) -> Tensor:
        return (~lowest_within(conn.weight.abs(), conn.weight >= 0, self.drop_fraction)).float()

    def grown_weight(self, conn: Connections, sites: Tensor, rng: Rng) -> Tensor:
        if not self.grown_std:
            return super().grown_weight(conn, sites, rng)
        return (self.grown_std * rng.normal(sites.shape[1], conn.weight.device)).to(conn.weight.dtype)


@hookimpl
def sparsefleet_rewirers() -> list[type[Rewirer]]:
    """Registers this module's rewirer."""
    return [SET]
