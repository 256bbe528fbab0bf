"""Magnitude pruning (arXiv 1506.02626, section 3): connections with small weights go first."""

from torch import Tensor

from sparsefleet import Connections, Pruner, hookimpl


class Magnitude(Pruner):
    """Scores a connection by the magnitude of its weight."""

    name = "magnitude"
    paper = "arXiv 1506.02626, section 3"

    def score(self, conn: Connections) -> Tensor:
        """``(nnz,)`` magnitudes."""
        return conn.weight.abs()


@hookimpl
def sparsefleet_pruners() -> list[type[Pruner]]:
    """Registers this module's pruner."""
    return [Magnitude]
