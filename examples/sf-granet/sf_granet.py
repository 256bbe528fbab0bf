"""GraNet: gradual pruning with zero-cost neuroregeneration (Liu et al., NeurIPS 2021, arXiv 2106.10404, Section 4 and Algorithm 1)."""

from typing import ClassVar

import torch
from pydantic import Field
from sparsefleet import Connections, Progress, Rewirer, Rng, Update, UserError, hookimpl, keep_best, keep_best_per_row


class GranetRewirer(Rewirer):
    """Prunes by magnitude along a cubic schedule from a denser start; after each pruning renews the weakest share at the largest gradients."""

    name = "granet"
    paper = "arXiv 2106.10404 (NeurIPS 2021), Section 4, Algorithm 1"
    rule = (
        "At step t a layer keeps its n_t largest |w|, n_t = n_f + (n_i - n_f) * (1 - t / t_f)^3, t_f = end * T; of these the r_t * n_t smallest, "
        "r_t = r / 2 * (1 + cos(pi * t / T)), give way to as many absent sites with the largest |dL/dw|, w = 0."
    )
    cannot = (
        "The authors' code ranks the weights of all layers together. Here each layer is pruned by itself to the count that `distribution` gave it: "
        "`redistribute` must keep the total, and no hook knows what all layers together were asked for. The start is what `distribution` gives "
        "at the asked density, scaled up and cut off where a layer is full: with `uniform` it is `initial` but for rounding, with `erk` it has "
        "fewer connections. Until `end`, memory and time are those of the denser net that it starts with."
    )
    needs_absent_grad = True
    varies_nnz = True
    fits_tiles = False
    stop: ClassVar[float] = 1.0

    every: int | None = Field(1000, ge=1, description="steps between updates; null: the end of every epoch")
    drop_fraction: float = Field(0.5, gt=0, le=1, description="share of a layer's connections renewed at the start (r)")
    initial: float = Field(1.0, gt=0, le=1, description="density that the training starts with; 1: dense (1 - s_i)")
    end: float = Field(0.6875, gt=0, le=1, description="share of the training after which nothing more is pruned (t_f)")

    def first_density(self, density: float) -> float:
        if density > self.initial:
            raise UserError(f"granet starts at density {self.initial} and cannot prune to {density}", fix="a larger `initial`, e.g. 1")
        return self.initial

    def last_pruning(self, progress: Progress) -> int:
        return max(1, round(self.end * progress.total_steps))

    def due(self, progress: Progress) -> bool:
        return super().due(progress) or progress.step == self.last_pruning(progress)

    def on_step(self, conn: Connections, lr: float, rng: Rng) -> None:
        conn.memory.setdefault("start", torch.tensor(conn.nnz))

    def update(self, conn: Connections, progress: Progress, rng: Rng, n_target: int) -> Update:
        left = max(0.0, 1 - progress.step / self.last_pruning(progress))
        n = min(conn.nnz, round(n_target + (int(conn.memory.get("start", conn.nnz)) - n_target) * left**3))
        size = conn.weight.abs()
        if conn.constant_fan_in:
            n -= n % conn.n_out
            kept = keep_best_per_row(size, conn.row, torch.full((conn.n_out,), n // conn.n_out, device=size.device))
        else:
            kept = keep_best(size, n)
        k = self.drop_count(conn.select(kept), progress)
        keep = keep_best(size.where(kept, -1), n - k)
        return Update(keep, conn.select(keep).best_absent(k))


@hookimpl
def sparsefleet_rewirers() -> list[type[Rewirer]]:
    """The rewirer of this module."""
    return [GranetRewirer]
