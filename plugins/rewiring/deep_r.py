"""DEEP R (arXiv 1711.05136, Algorithm 1): SGD as a random walk; a connection whose weight crosses zero goes dormant."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from sparsefleet import Connections, Progress, Rewirer, Rng, Update, hookimpl

_FIRST_THETA = 1e-12


class DeepR(Rewirer):
    """Weight ``w = s * theta`` with a sign s that belongs to the site for ever; theta <= 0 is dormant, random dormant sites replace it.

    The number of active connections is constant per layer, as in the authors' script; rewiring follows every optimizer step.
    """

    name = "deep-r"
    paper = "arXiv 1711.05136, Algorithm 1"
    rule = (
        "active: theta <- theta - lr * dE/dtheta - lr * alpha + sqrt(2 lr T) * nu, w = s * theta; theta <= 0 falls asleep, and uniformly "
        "random dormant sites wake with theta = 1e-12 until K are active"
    )
    cannot = (
        "Only SGD without momentum is the Langevin step that it samples by; at the authors' temperature it moves few connections a step."
    )
    needs_plain_sgd = True
    fits_tiles = False
    every: ClassVar[int] = 1
    drop_fraction: ClassVar[float] = 0.0
    stop: ClassVar[float] = 1.0
    alpha: float = Field(1e-5, ge=0, description="l1 coefficient: a step lowers theta by lr * alpha")
    temperature: float = Field(
        2.5e-11, ge=0, description="T: a step adds sqrt(2 * lr * T) * N(0, 1) to theta; 2.5e-11 is the authors' noise at lr 0.5"
    )

    def due(self, progress: Progress) -> bool:
        """After every step, the last one too: no connection may end with theta <= 0."""
        return progress.step > 0

    def initial_state(self, conn: Connections) -> Mapping[str, Tensor]:
        """The signs; whose first weight has another than its site's draw is remembered, for its sign lasts while it is dormant."""
        if "turned" not in conn.memory:
            flat = conn.flat
            conn.memory["turned"] = flat[(conn.initial_draw(flat) < 0) != (conn.weight < 0)]
        return {"sign": torch.where(conn.weight < 0, -1.0, 1.0).to(conn.weight.dtype)}

    def on_step(self, conn: Connections, lr: float, rng: Rng) -> None:
        """The optimizer has done ``theta -= lr * dE/dtheta``; this adds the prior and the noise."""
        walk = torch.full_like(conn.weight, -lr * self.alpha)
        if self.temperature:
            noise = rng.normal(conn.nnz, conn.weight.device).to(conn.weight.dtype)
            walk.add_(noise, alpha=math.sqrt(2 * lr * self.temperature))
        conn.weight.addcmul_(conn.state["sign"], walk)

    def update(self, conn: Connections, progress: Progress, rng: Rng, n_target: int) -> Update:
        """Dormant ones out, uniformly random dormant sites in."""
        active = conn.state["sign"] * conn.weight > 0
        return Update(active, conn.select(active).random_absent(n_target - int(active.sum()), rng))

    def grown_weight(self, conn: Connections, sites: Tensor, rng: Rng) -> Tensor:
        """A tiny theta with the site's own sign."""
        flat = sites[0] * conn.n_in + sites[1]
        negative = conn.initial_draw(flat) < 0
        if "turned" in conn.memory:
            negative ^= torch.isin(flat, conn.memory["turned"].to(flat.device))
        return torch.where(negative, -1.0, 1.0).to(conn.weight.dtype) * _FIRST_THETA


@hookimpl
def sparsefleet_rewirers() -> list[type[Rewirer]]:
    """Registers this module's rewirer."""
    return [DeepR]
