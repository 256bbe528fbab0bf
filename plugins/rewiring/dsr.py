"""DSR, dynamic sparse reparameterization (arXiv 1902.05967, Algorithm 1): one threshold prunes all layers, which regrow by their rest."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from sparsefleet import Connections, Progress, Rewirer, Rng, Update, apportion, hookimpl, keep_best

_TOLERANCE, _GAIN = 0.1, 2.0
_LEAST, _MOST = 1e-300, 1e300  # zero would never double


class DSR(Rewirer):
    """Prunes every weight below one threshold for the whole network, and regrows as many at random sites of layers by their survivors.

    The threshold doubles when too few were pruned and halves when too many, for the next update. The paper leaves three things open: N is
    at most half of the connections, since the threshold grew without end otherwise; a layer of which nothing would survive keeps its
    largest weight; what a full layer cannot take goes to the others in proportion.
    """

    name = "dsr"
    paper = "arXiv 1902.05967, Algorithm 1"
    rule = (
        "Prune |w| < H in every layer, K in all, R_l survive in layer l. H <- 2 H if K < (1 - delta) N, H <- H / 2 if K > (1 + delta) N, "
        "with delta = 0.1 and N = prune_share * sites. Layer l regrows K * R_l / sum R at random absent sites, with w = 0."
    )
    cannot = (
        "One threshold serves all layers: those whose weights are small from the start are pruned first. N counts sites, so that at low "
        "density it is many of the connections: lower prune_share with it."
    )
    redistributes = True
    fits_tiles = False
    every: int | None = Field(100, ge=1, description="steps between updates; null: the end of every epoch but the last")
    drop_fraction: ClassVar[float] = 1.0
    stop: float = Field(1.0, gt=0, le=1, description="share of the training after which the topology stays")
    prune_share: float = Field(0.01, gt=0, le=1, description="N, the number to prune at an update, as a share of all sites of the network")
    threshold: float = Field(0.001, gt=0, description="H at the first update")

    def redistribute(self, layers: Mapping[str, Connections], progress: Progress) -> Mapping[str, int]:
        """``{layer: nnz}``: survivors, and their part of what was pruned; adapts the threshold."""
        conns = list(layers.values())
        for conn in conns:
            conn.memory["threshold"] = conn.memory.pop("next", torch.tensor(self.threshold, dtype=torch.float64))
        survivors = [int(self._survives(conn).sum()) for conn in conns]
        nnz = sum(conn.nnz for conn in conns)
        n_pruned, wanted = nnz - sum(survivors), min(self.prune_share * sum(conn.n_sites for conn in conns), nnz / 2)
        factor = _GAIN if n_pruned < (1 - _TOLERANCE) * wanted else 1 / _GAIN if n_pruned > (1 + _TOLERANCE) * wanted else 1.0
        for conn in conns:
            conn.memory["next"] = (factor * conn.memory["threshold"]).clamp(_LEAST, _MOST)
        grown = apportion(n_pruned, survivors, [conn.n_sites - n for conn, n in zip(conns, survivors, strict=True)])
        return {name: kept + new for name, kept, new in zip(layers, survivors, grown, strict=True)}

    def update(self, conn: Connections, progress: Progress, rng: Rng, n_target: int) -> Update:
        """Those below the threshold out, random sites in."""
        keep = self._survives(conn)
        return Update(keep, self.grow(conn.select(keep), n_target - int(keep.sum()), rng))

    def _survives(self, conn: Connections) -> Tensor:
        size = conn.weight.abs()
        keep = size >= float(conn.memory.get("threshold", self.threshold))
        return keep if not conn.nnz or bool(keep.any()) else keep_best(size, 1)


@hookimpl
def sparsefleet_rewirers() -> list[type[Rewirer]]:
    """Registers this module's rewirer."""
    return [DSR]
