"""Top-KAST (arXiv 2106.03517, section 2): the largest weights compute, a larger set learns."""

from typing import ClassVar

import torch
from pydantic import Field
from sparsefleet_plugins.rewiring.absent_weights import draw_absent
from torch import Tensor

from sparsefleet import Connections, Progress, Rewirer, Rng, Update, hookimpl, keep_best


class TopKast(Rewirer):
    """The largest weights (A) compute; they and the largest of the others (B) get gradients and decay, and may change places.

    Both sets are chosen after the first step, which runs on the drawn connections, and every ``every`` steps from then on. Absent
    weights start as in the dense layer and keep their value outside of B.
    """

    name = "top-kast"
    paper = "arXiv 2106.03517, section 2"
    rule = "A = top-D by |w|, B = top-(D + M); w <- w - lr (dL/dw + lambda w) on A, w <- w - lr (dL/dw + lambda/D w) on B without A"
    cannot = (
        "It stores a dense weight and its gradient, unlike the paper's own sparse one. The optimizer's weight_decay acts on every stored "
        "weight: leave it at 0."
    )
    needs_dense = revives = needs_plain_sgd = True
    fits_tiles = False
    every: int = Field(100, ge=1, description="steps between two choices of A and B")
    drop_fraction: ClassVar[float] = 0.0
    stop: float = Field(1.0, gt=0, le=1, description="share of the training after which the topology stays")
    more: float = Field(0.3, gt=0, lt=1, description="M: share of all sites in B beyond A")
    decay: float = Field(1e-4, ge=0, description="lambda: decay of weights in A; those in B beyond A decay by lambda over the density")

    def due(self, progress: Progress) -> bool:
        """After the first step, which knows of no magnitudes yet, and every ``every`` steps."""
        return progress.step == 1 or super().due(progress)

    def on_step(self, conn: Connections, lr: float, rng: Rng) -> None:
        """The optimizer has done ``w -= lr * grad`` on A; this adds the decay, and the whole step on B beyond A."""
        step, state = int(conn.memory.get("step", torch.tensor(0))), conn.dense.state
        if step == 0:
            draw_absent(conn, lr)
        if step < 2 or step % self.every == 0:  # right after A was chosen, from the same weights
            state["beyond"] = self._beyond(conn)
        weight, beyond = conn.dense.weight.view(-1), state["beyond"].view(-1)
        weight[beyond] -= lr * (conn.dense.grad.reshape(-1)[beyond] + self.decay * conn.n_sites / max(1, conn.nnz) * weight[beyond])
        conn.weight.sub_(conn.weight + lr * conn.grad, alpha=lr * self.decay)  # of the weight before the step
        conn.memory["step"] = torch.tensor(step + 1)

    def _beyond(self, conn: Connections) -> Tensor:
        """``(n_out, n_in)`` bool: B without A, the largest absent weights."""
        score = conn.dense.weight.abs().view(-1)
        score[conn.flat] = -1.0
        return keep_best(score, min(int(self.more * conn.n_sites + 1e-9), conn.n_sites - conn.nnz)).view(conn.shape)

    def update(self, conn: Connections, progress: Progress, rng: Rng, n_target: int) -> Update:
        """A is chosen anew from all stored weights."""
        chosen = keep_best(conn.dense.weight.abs().reshape(-1), n_target)
        keep = chosen[conn.flat]
        chosen[conn.flat] = False
        new = torch.nonzero(chosen).flatten()
        return Update(keep, torch.stack([new // conn.n_in, new % conn.n_in]))

    def grown_weight(self, conn: Connections, sites: Tensor, rng: Rng) -> Tensor:
        """What was stored there."""
        return conn.dense.weight[sites[0], sites[1]]


@hookimpl
def sparsefleet_rewirers() -> list[type[Rewirer]]:
    """Registers this module's rewirer."""
    return [TopKast]
