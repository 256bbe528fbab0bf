"""Grow-then-prune: random sites join, then the smallest of all go, as the slide "Dynamic Sparse Training" means it, with exact counts."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from sparsefleet import Connections, Progress, Rewirer, Rng, Update, hookimpl, keep_best, share_of


class GrowThenPrune(Rewirer):
    """Grows a share of the absent sites at random, then keeps as many as there were by magnitude: new ones stay if their stored weight is large.

    Absent weights are stored behind the mask: they start as in the dense layer and keep the value that they had when they were dropped.
    """

    name = "grow-then-prune"
    paper = "no paper: slide 11 of a talk's notes"
    rule = "A' = A and g * |absent| uniformly random absent sites; A <- the nnz sites of A' with the largest stored |w|"
    cannot = "While it updates, more connections stand than were asked: all of A', the transient overshoot in the record."
    needs_dense = revives = True
    fits_tiles = False
    drop_fraction: ClassVar[float] = 1.0
    every: int | None = Field(100, ge=1, description="steps between updates; null: the end of every epoch but the last")
    stop: float = Field(1.0, gt=0, le=1, description="share of the training after which the topology stays")
    grow_fraction: float = Field(0.1, gt=0, le=1, description="g, the share of absent sites that join")

    def initial_state(self, conn: Connections) -> Mapping[str, Tensor]:
        """None; at the start absent sites get the weights that they would have in the dense layer."""
        if conn.dense is not None and "started" not in conn.memory:
            conn.memory["started"] = torch.tensor(True)
            site = torch.arange(conn.n_sites, device=conn.weight.device)
            draw = conn.initial_draw(site)
            scale = conn.weight.double().abs().sum() / draw[conn.flat].abs().sum() if conn.nnz else torch.zeros(())
            draw = draw.mul_(scale).to(conn.weight.dtype).index_copy_(0, conn.flat, conn.weight)
            conn.dense.weight.copy_(draw.view(conn.shape))
        return {}

    def n_peak(self, conn: Connections, progress: Progress) -> int:
        """All that compete."""
        return conn.nnz + self._n_join(conn)

    def _n_join(self, conn: Connections) -> int:
        return share_of(conn.n_sites - conn.nnz, self.grow_fraction)

    def update(self, conn: Connections, progress: Progress, rng: Rng, n_target: int) -> Update:
        """The largest of those that are there and those that join; of equal ones the earlier sites."""
        assert conn.dense is not None
        joined = conn.random_absent(self._n_join(conn), rng)
        flat = torch.cat([conn.flat, joined[0] * conn.n_in + joined[1]])
        score, order = torch.cat([conn.weight, conn.dense.weight[joined[0], joined[1]]]).abs(), torch.argsort(flat)
        chosen = torch.empty(flat.shape, dtype=torch.bool, device=flat.device)
        chosen[order] = keep_best(score[order], n_target)
        return Update(chosen[: conn.nnz], joined[:, chosen[conn.nnz :]])

    def grown_weight(self, conn: Connections, sites: Tensor, rng: Rng) -> Tensor:
        """What was stored there."""
        assert conn.dense is not None
        return conn.dense.weight[sites[0], sites[1]]


@hookimpl
def sparsefleet_rewirers() -> list[type[Rewirer]]:
    """Registers this module's rewirer."""
    return [GrowThenPrune]
