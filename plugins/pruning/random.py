"""Random pruning: the control arm that every criterion must beat (RandomPruning of jaxpruner, arXiv 2304.14082)."""

from torch import Tensor

from sparsefleet import Connections, Pruner, hookimpl


class Random(Pruner):
    """Scores a connection by a uniform draw that belongs to its site, so that storage and order change nothing."""

    name = "random"
    paper = "arXiv 2304.14082"

    def score(self, conn: Connections) -> Tensor:
        """``(nnz,)`` uniform in [0, 1)."""
        return conn.rng.at(conn.flat)


@hookimpl
def sparsefleet_pruners() -> list[type[Pruner]]:
    """Registers this module's pruner."""
    return [Random]
