"""SR-STE (arXiv 2102.04010): N of every M inputs compute, all weights learn straight through the mask."""

from typing import ClassVar

import torch
from pydantic import Field, model_validator
from sparsefleet_plugins.rewiring.absent_weights import draw_absent
from torch import Tensor
from torch.nn.functional import pad

from sparsefleet import Connections, Progress, Rewirer, Rng, Update, UserError, hookimpl


class SrSte(Rewirer):
    """Keeps the n largest weights of every m consecutive inputs, chosen anew after each step; every weight gets the masked weight's gradient.

    Masked-out weights also decay, so that the choice settles. The first step runs on the drawn connections; absent weights start as in
    the dense layer. Of a convolution the groups run along its input channels.
    """

    name = "sr-ste"
    paper = "arXiv 2102.04010 (SR-STE)"
    rule = "M = top n of every m consecutive inputs by |w|; w <- w - lr (dL/d(w M) + lambda_w (1 - M) w), M anew after every step"
    cannot = (
        "Defined here for plain SGD: a masked-out weight has no momentum. The density must be n/m; where inputs are no multiple of m, the "
        "last, smaller group keeps n too, and the layer holds more. Name a first convolution in keep_dense."
    )
    needs_dense = revives = needs_plain_sgd = varies_nnz = True
    fits_tiles = False
    n_of_m_by: ClassVar[tuple[str, str] | None] = ("n", "m")
    every: ClassVar[int] = 1
    drop_fraction: ClassVar[float] = 0.0
    stop: ClassVar[float] = 1.0
    n: int = Field(2, ge=1, description="how many of a group stay")
    m: int = Field(4, ge=2, description="consecutive inputs in a group")
    decay: float = Field(2e-4, ge=0, description="lambda_w: decay of masked-out weights; 0 is the plain straight-through estimator")

    @model_validator(mode="after")
    def _some_go(self) -> "SrSte":
        if self.n >= self.m:
            raise ValueError(f"n must be below m, got {self.n}:{self.m}")
        return self

    def first_density(self, density: float) -> float:
        """``density``, which must be n/m."""
        if abs(density - self.n / self.m) > 1e-6:
            raise UserError(
                f"{self.name} keeps {self.n} of every {self.m} inputs, and density is {density:g}", fix=f"density: {self.n / self.m:g}"
            )
        return density

    def due(self, progress: Progress) -> bool:
        """After every step, the last one too."""
        return progress.step > 0

    def on_step(self, conn: Connections, lr: float, rng: Rng) -> None:
        """The optimizer has done its step on the mask; this does it, with the decay, on all other weights."""
        if "started" not in conn.memory:
            draw_absent(conn, lr)
            conn.memory["started"] = torch.tensor(True)
        step = conn.dense.grad.add(conn.dense.weight, alpha=self.decay).mul_(lr)
        step.view(-1)[conn.flat] = 0
        conn.dense.weight.sub_(step)

    def update(self, conn: Connections, progress: Progress, rng: Rng, n_target: int) -> Update:
        """The mask of the weights as they are now; nothing where nothing was asked."""
        chosen = self._mask(conn.dense.weight.abs(), conn.kernel).reshape(-1)
        if not n_target:
            chosen = torch.zeros_like(chosen)
        keep = chosen[conn.flat]
        chosen[conn.flat] = False
        new = torch.nonzero(chosen).flatten()
        return Update(keep, torch.stack([new // conn.n_in, new % conn.n_in]))

    def _mask(self, score: Tensor, kernel: int) -> Tensor:
        """``(n_out, n_in)`` bool: the n highest scores of every group, ties by position."""
        n_out, n_channels = score.shape[0], score.shape[1] // kernel
        groups = pad(score.reshape(n_out, n_channels, kernel).transpose(1, 2), (0, -n_channels % self.m), value=-1.0).reshape(-1, self.m)
        best = torch.argsort(groups, dim=1, descending=True, stable=True)[:, : self.n]
        mask = torch.zeros(groups.shape, dtype=torch.bool, device=score.device).scatter_(1, best, True)
        return mask.view(n_out, kernel, -1)[:, :, :n_channels].transpose(1, 2).reshape(score.shape)

    def grown_weight(self, conn: Connections, sites: Tensor, rng: Rng) -> Tensor:
        """What was stored there."""
        return conn.dense.weight[sites[0], sites[1]]


@hookimpl
def sparsefleet_rewirers() -> list[type[Rewirer]]:
    """Registers this module's rewirer."""
    return [SrSte]
