"""Random pruning: the control arm that every criterion must beat (RandomPruning of jaxpruner, arXiv 2304.14082)."""

from torch import Tensor

from sparsefleet import Connections, Pruner, hookimpl


class Random(Pruner):
    """Scores a connection by a uniform draw that belongs to its site, so that storage and order change nothing.

    Only live connections are scored: what is pruned stays pruned, and the count is exact.
    """

    name = "random"
    paper = "arXiv 2304.14082"
    rule = "score ~ U[0, 1), drawn for (seed, layer, step, site)"
    cannot = "It knows nothing: use it as the control arm."

    def score(self, conn: Connections) -> Tensor:
        """``(nnz,)`` uniform in [0, 1)."""
        return conn.rng.at(conn.flat)


@hookimpl
def sparsefleet_pruners() -> list[type[Pruner]]:
    """Registers this module's pruner."""
    return [Random]
