"""Soft DEEP R (arXiv 1711.05136, Algorithm 2): dormant parameters walk too, and wake by themselves; nothing holds the number of connections."""

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from sparsefleet import Connections, Progress, Rewirer, Rng, Update, hookimpl


class SoftDeepR(Rewirer):
    """Weight ``w = s * theta`` while theta > 0, with a sign s that belongs to the site for ever; a dormant theta walks at random above a bound.

    An active theta gets the gradient, the l1 term and noise; a dormant one noise alone (its prior is uniform, as in the authors' script, whose
    rule of thumb for the bound is the default): then about the share of sites that was asked is active.
    """

    name = "soft-deep-r"
    paper = "arXiv 1711.05136, Algorithm 2; script_mnist_soft_deep_rewiring.py of the authors"
    rule = (
        "theta > 0: theta <- theta - lr * dE/dtheta - lr * alpha + sqrt(2 lr T) * nu; theta <= 0: theta <- max(theta_min, theta + "
        "sqrt(2 lr T) * nu); theta_min = -(1 - p) / p * T / alpha at density p; w = s * theta if theta > 0, else 0"
    )
    cannot = (
        "Nothing bounds the number of connections: while the loss pulls, more wake than fall asleep, and a run may end with several times what "
        "was asked. It keeps a parameter at every site, so it saves no memory."
    )
    needs_dense = varies_nnz = needs_plain_sgd = True
    fits_tiles = False
    every: ClassVar[int] = 1
    drop_fraction: ClassVar[float] = 0.0
    stop: ClassVar[float] = 1.0
    alpha: float = Field(1e-5, gt=0, description="l1 coefficient: a step lowers an active theta by lr * alpha")
    temperature: float = Field(
        2.5e-12, gt=0, description="T: a step adds sqrt(2 * lr * T) * N(0, 1) to theta; 2.5e-12 is the authors' noise at lr 0.05"
    )
    theta_min: float | None = Field(None, lt=0, description="least theta; null: the authors' rule, from the density asked")

    def due(self, progress: Progress) -> bool:
        """After every step, the last one too: no connection may end with theta <= 0."""
        return progress.step > 0

    def on_step(self, conn: Connections, lr: float, rng: Rng) -> None:
        """The optimizer has done ``theta -= lr * dE/dtheta`` on active ones; this does the rest, on all."""
        theta, sign = self._parameters(conn, rng)
        active = conn.flat
        theta[active] = sign[active] * conn.weight
        theta.add_(rng.normal(conn.n_sites, theta.device).to(theta.dtype), alpha=math.sqrt(2 * lr * self.temperature))
        theta[active] -= lr * self.alpha
        theta.clamp_(min=float(conn.memory["theta_min"]))
        conn.weight.copy_(sign[active] * theta[active])

    def _parameters(self, conn: Connections, rng: Rng) -> tuple[Tensor, Tensor]:
        """``(n_sites,)`` theta and sign, views of what is kept; dormant ones start uniform between the bound and zero."""
        assert conn.dense is not None
        state = conn.dense.state
        if "theta" not in state:
            p = max(conn.nnz, 1) / conn.n_sites
            bound = self.theta_min if self.theta_min is not None else -(1 - p) / p * self.temperature / self.alpha
            conn.memory["theta_min"] = torch.tensor(bound, dtype=torch.float64)
            site = torch.arange(conn.n_sites, device=conn.weight.device)
            sign = torch.where(conn.initial_draw(site) < 0, -1.0, 1.0).to(conn.weight.dtype)
            sign[conn.flat] = torch.where(conn.weight < 0, -1.0, 1.0).to(sign.dtype)
            state["sign"], state["theta"] = sign.view(conn.shape), (bound * rng.spawn("dormant").at(site)).to(sign.dtype).view(conn.shape)
        return state["theta"].view(-1), state["sign"].view(-1)

    def update(self, conn: Connections, progress: Progress, rng: Rng, n_target: int) -> Update:
        """Who crossed zero falls asleep or wakes; nobody does where nothing was asked."""
        assert conn.dense is not None
        awake = (conn.dense.state["theta"].view(-1) > 0) & bool(n_target)
        keep = awake[conn.flat]
        awake[conn.flat] = False
        new = torch.nonzero(awake).flatten()
        return Update(keep, torch.stack([new // conn.n_in, new % conn.n_in]))

    def grown_weight(self, conn: Connections, sites: Tensor, rng: Rng) -> Tensor:
        """``s * theta``."""
        assert conn.dense is not None
        state = conn.dense.state
        return (state["sign"] * state["theta"])[sites[0], sites[1]]


@hookimpl
def sparsefleet_rewirers() -> list[type[Rewirer]]:
    """Registers this module's rewirer."""
    return [SoftDeepR]
