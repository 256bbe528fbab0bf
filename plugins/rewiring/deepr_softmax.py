"""deepr-softmax: the gradient-guided regrowth that the notebook "Dynamic Sparse Training" calls DEEP R, done right. It is not DEEP R."""

import torch
from pydantic import Field
from torch import Tensor

from sparsefleet import Connections, Progress, Rewirer, Rng, hookimpl, share_of


class DeeprSoftmax(Rewirer):
    """Drops a constant share of the smallest weights, and samples as many absent sites in proportion to ``softmax(|gradient| / T)``.

    The gradient is the loss's by the masked weight, at every site. Sampling is without replacement, by the k largest of
    ``|g| / T + Gumbel noise`` (Kool et al., arXiv 1903.06059): no limit on the number of sites, and no site of vanishing probability
    while others are left.
    """

    name = "deepr-softmax"
    paper = "no paper: a notebook's variant; its sampling is arXiv 1903.06059, section 2.3"
    rule = "drop the f * nnz smallest |w|; grow as many absent sites, drawn without replacement with p proportional to exp(|dL/dw| / T), with w = 0"
    cannot = (
        "At T far above the gradients it is uniform, at T far below it grows at the largest ones. It is neither DEEP R (deep-r) nor RigL. "
        "It looks at the gradient of every site, which only masked holds."
    )
    needs_dense = True
    fits_tiles = False
    every: int | None = Field(100, ge=1, description="steps between updates; null: the end of every epoch but the last")
    drop_fraction: float = Field(0.3, gt=0, le=1, description="share of a layer's connections dropped at every update")
    stop: float = Field(1.0, gt=0, le=1, description="share of the training after which the topology stays")
    temperature: float = Field(1.0, gt=0, description="T: gradient magnitudes are divided by it")

    def drop_count(self, conn: Connections, progress: Progress) -> int:
        """The same share every time."""
        return share_of(conn.nnz, self.drop_fraction)

    def grow(self, conn: Connections, k: int, rng: Rng) -> Tensor:
        """``(2, k)`` sampled absent sites; a just-dropped one may return, anew."""
        assert conn.dense is not None
        assert conn.dense.grad is not None
        score = conn.dense.grad.double().abs().view(-1).div(self.temperature)
        draw = rng.at(torch.arange(conn.n_sites, device=score.device)).clamp_(min=2.0**-54)
        score -= draw.log_().neg_().log_()  # the logarithm of an exponential draw; its negative is Gumbel's
        return conn.best_absent(k, score.sub_(score.min()).view(conn.shape))


@hookimpl
def sparsefleet_rewirers() -> list[type[Rewirer]]:
    """Registers this module's rewirer."""
    return [DeeprSoftmax]
