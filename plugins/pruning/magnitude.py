"""Magnitude pruning (arXiv 1506.02626, section 3): connections with small weights go first."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from sparsefleet import Connections, Pruner, hookimpl


class Magnitude(Pruner):
    """Scores a connection by the magnitude of its weight.

    With ``distribution: global`` all layers share one ranking, of plain magnitudes unless ``normalise`` is ``l2``.
    """

    name = "magnitude"
    paper = "arXiv 1506.02626, section 3"
    rule = "score = |w|, or |w| / ||W_l||_2 over the live weights of the layer with normalise: l2"
    cannot = "Plain and global, it may leave a layer of small weights with one connection; normalise: l2 or lamp then spread better."

    normalise: Literal["none", "l2"] = Field(
        "none",
        description="l2: divide by the layer's Euclidean norm, as jaxpruner's global magnitude does; matters to distribution: global",
    )

    def score(self, conn: Connections) -> Tensor:
        """``(nnz,)`` magnitudes; normalised ones in float64, so that no two different weights become equal."""
        size = conn.weight.abs()
        if self.normalise == "none":
            return size
        size = size.double()
        norm = size.norm()
        return size / norm if norm > 0 else size


@hookimpl
def sparsefleet_pruners() -> list[type[Pruner]]:
    """Registers this module's pruner."""
    return [Magnitude]
