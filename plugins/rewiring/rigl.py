"""RigL (arXiv 1911.11134, Algorithm 1): drop by magnitude, grow where the gradient of the loss is largest."""

from torch import Tensor

from sparsefleet import Connections, Rewirer, Rng, hookimpl


class RigL(Rewirer):
    """Drops a cosine share and grows at the largest gradients, zero-weighted, in place of the optimizer's step. Use with ERK."""

    name = "rigl"
    paper = "arXiv 1911.11134, Algorithm 1"
    rule = (
        "drop the f_t * nnz smallest |w|, f_t = f / 2 * (1 + cos(pi * t / (stop * T))); grow as many sites with the largest |dL/dw| among all "
        "that are not kept, with w = 0; a just-dropped one that returns keeps its weight"
    )
    cannot = "It sees the gradient of one batch: with small ones, accumulate gradients or update less often."
    needs_absent_grad = replaces_step = keeps_regrown = True

    def grow(self, conn: Connections, k: int, rng: Rng) -> Tensor:
        """``(2, k)`` absent sites with the largest gradients; a just-dropped one may return."""
        return conn.best_absent(k)


@hookimpl
def sparsefleet_rewirers() -> list[type[Rewirer]]:
    """Registers this module's rewirer."""
    return [RigL]
