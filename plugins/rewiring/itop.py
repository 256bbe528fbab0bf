"""In-time over-parameterisation (arXiv 2102.02887): SET and RigL that wait long between updates and never stop exploring."""

from pydantic import Field
from torch import Tensor

from sparsefleet import Connections, Rewirer, Rng, hookimpl


class ItopSet(Rewirer):
    """Drops half of the smallest magnitudes every 1500 steps, less and less to the end, and grows at random sites.

    As the authors' code, magnitudes of both signs compete, and what is dropped and grown at once keeps its weight and slots. That code rounds
    the count up and never lets the rate fall below 0.005; here it is rounded down and falls to zero. A weight of exactly zero stays
    a connection.
    """

    name = "itop-set"
    paper = "arXiv 2102.02887 (ITOP); defaults of the authors' code"
    rule = "every 1500 steps: drop f_t nnz smallest |w|, f_t = 0.5/2 (1 + cos(pi t/T)); grow as many at random absent sites, weight 0"
    cannot = (
        "It does little in short trainings: every updates must be reached, and each new connection needs the steps between two updates."
    )
    keeps_regrown = True
    every: int | None = Field(1500, ge=1, description="steps between updates (1500 at batch 128); null: the end of every epoch")
    drop_fraction: float = Field(0.5, gt=0, le=1, description="share of a layer's connections dropped at the first update")
    stop: float = Field(1.0, gt=0, le=1, description="share of the training after which the topology stays")


class ItopRigL(ItopSet):
    """Drops half of the smallest magnitudes every 4000 steps, less and less to the end, and grows at the largest gradients.

    Other than RigL it follows the optimizer's step and does not take its place.
    """

    name = "itop-rigl"
    rule = "every 4000 steps: drop f_t nnz smallest |w|, f_t = 0.5/2 (1 + cos(pi t/T)); grow as many at the largest |dL/dw|, weight 0"
    needs_absent_grad = True
    every: int | None = Field(4000, ge=1, description="steps between updates (4000 at batch 128); null: the end of every epoch")

    def grow(self, conn: Connections, k: int, rng: Rng) -> Tensor:
        """``(2, k)`` absent sites with the largest gradients; a just-dropped one may return."""
        return conn.best_absent(k)


@hookimpl
def sparsefleet_rewirers() -> list[type[Rewirer]]:
    """Registers this module's rewirers."""
    return [ItopSet, ItopRigL]
