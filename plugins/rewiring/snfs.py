"""SNFS, sparse momentum (arXiv 1907.04840, section 3): connections move to where the averaged gradient is largest, between layers too."""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from sparsefleet import Connections, Progress, Rewirer, Rng, apportion, hookimpl

_FEW_ZEROS = 0.2


class SNFS(Rewirer):
    """Drops a share of each layer's smallest weights after each epoch, and gives the sum to the layers in proportion to the mean momentum.

    A layer grows where the momentum of absent sites is largest. Momentum is an average of the gradient at every site, kept by the method:
    the optimizer's slots are zero at grown sites. As in the authors' code, what a full layer cannot take goes to the others in equal parts,
    and a layer with few zeros and more than the average momentum drops no larger share than that of its zeros, so that it can fill up.
    """

    name = "snfs"
    paper = "arXiv 1907.04840, section 3"
    rule = (
        "m <- beta * m + (1 - beta) * dL/dw at every site. At an update layer l drops its p_t * nnz_l smallest |w|, with "
        "p_t = p / 2 * (1 + cos(pi * t / stop)). Of all dropped it grows the part mean|m_l| / sum_k mean|m_k|, means over connections, "
        "at the absent sites of largest |m|, with w = 0."
    )
    cannot = "It averages the gradient at every site, which takes the memory of another dense weight; networks that only fit sparse cannot."
    needs_dense = redistributes = True
    fits_tiles = False
    every: int | None = Field(None, ge=1, description="steps between updates; null: the end of every epoch but the last")
    drop_fraction: float = Field(0.5, gt=0, le=1, description="share of a layer's connections dropped at the first update (p)")
    stop: float = Field(1.0, gt=0, le=1, description="share of the training after which the topology stays")
    beta: float = Field(0.9, ge=0, lt=1, description="of the gradient's average")

    def on_step(self, conn: Connections, lr: float, rng: Rng) -> None:
        """Averages the gradient."""
        dense = conn.dense
        assert dense is not None
        assert dense.grad is not None
        momentum = dense.state.setdefault("momentum", torch.zeros_like(dense.weight))
        momentum.mul_(self.beta).add_(dense.grad, alpha=1 - self.beta)

    def drop_count(self, conn: Connections, progress: Progress) -> int:
        """The cosine's share, or what ``redistribute`` left of it."""
        n_drop = super().drop_count(conn, progress)
        return min(n_drop, int(conn.memory["n_drop_at_most"])) if "n_drop_at_most" in conn.memory else n_drop

    def redistribute(self, layers: Mapping[str, Connections], progress: Progress) -> Mapping[str, int]:
        """``{layer: nnz}``: what each keeps, and its part of all that is dropped."""
        conns = list(layers.values())
        mean = [float(_momentum(conn).view(-1)[conn.flat].abs().mean()) if conn.nnz else 0.0 for conn in conns]
        for conn, own in zip(conns, mean, strict=True):
            fills_up = 1 - conn.density < _FEW_ZEROS and own * len(mean) > sum(mean)
            conn.memory["n_drop_at_most"] = torch.tensor(conn.nnz * (conn.n_sites - conn.nnz) // conn.n_sites if fills_up else conn.nnz)
        kept = [conn.nnz - self.drop_count(conn, progress) for conn in conns]
        n_dropped = sum(conn.nnz for conn in conns) - sum(kept)
        room = [conn.n_sites - n for conn, n in zip(conns, kept, strict=True)]
        share = apportion(n_dropped, mean, [n_dropped] * len(conns))
        grown = [min(pair) for pair in zip(share, room, strict=True)]
        excess = apportion(n_dropped - sum(grown), [1] * len(conns), [place - n for place, n in zip(room, grown, strict=True)])
        return dict(zip(layers, (sum(parts) for parts in zip(kept, grown, excess, strict=True)), strict=True))

    def grow(self, conn: Connections, k: int, rng: Rng) -> Tensor:
        """``(2, k)`` absent sites of the largest momentum; a just-dropped one may return, anew."""
        return conn.best_absent(k, _momentum(conn))


def _momentum(conn: Connections) -> Tensor:
    assert conn.dense is not None
    return conn.dense.state["momentum"]


@hookimpl
def sparsefleet_rewirers() -> list[type[Rewirer]]:
    """Registers this module's rewirer."""
    return [SNFS]
