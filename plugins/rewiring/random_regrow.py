"""Random regrow: RigL (arXiv 1911.11134, Algorithm 1) that grows at random sites, the control arm of growing by gradient."""

from sparsefleet import Rewirer, hookimpl


class RandomRegrow(Rewirer):
    """Drops as RigL does and grows as many connections at uniformly random absent sites, zero-weighted, in place of the optimizer's step.

    All else is RigL's, so that a difference between both is that of the gradient.
    """

    name = "random-regrow"
    paper = "arXiv 1911.11134, Algorithm 1, grown at random as in its SET baseline"
    rule = "drop the f_t * nnz smallest |w|, f_t = f / 2 * (1 + cos(pi * t / (stop * T))); grow as many uniformly random absent sites with w = 0"
    replaces_step = keeps_regrown = True


@hookimpl
def sparsefleet_rewirers() -> list[type[Rewirer]]:
    """Registers this module's rewirer."""
    return [RandomRegrow]
