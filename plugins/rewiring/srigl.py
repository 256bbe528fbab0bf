"""SRigL (arXiv 2305.02299, section 3): RigL at a constant fan-in; units with too few salient connections are taken away."""

import torch
from pydantic import Field
from torch import Tensor

from sparsefleet import Connections, Progress, Rewirer, Rng, Update, hookimpl, keep_best, keep_best_per_row


class SRigL(Rewirer):
    """Drops the smallest magnitudes of a layer, ablates its weak output units, and lets the others grow by gradient to one fan-in.

    The fan-in is the asked count over the units that live, rounded down, so a layer never holds more than was asked. A unit that kept more
    loses its smallest magnitudes; the authors' code cuts any. The last layer, and one whose storage holds a constant fan-in, loses no unit; another
    keeps, as in that code, as many as it takes to hold what was asked.
    """

    name = "srigl"
    paper = "arXiv 2305.02299, section 3.1"
    rule = (
        "K = f_t nnz; salient: top nnz - K by |w| and top K by |dL/dw| of absent ones; ablate units with fewer than max(1, gamma k) of them; "
        "k' = nnz / living units; of each living unit keep at most k' of the top |w|, grow by |dL/dw| to k'"
    )
    cannot = "A storage with a constant fan-in cannot hold an ablated unit: there it runs with gamma: 0 only."
    needs_absent_grad = replaces_step = keeps_regrown = varies_nnz = True
    fits_tiles = False
    ablates_by = "gamma"
    gamma: float = Field(0.3, ge=0, le=1, description="share of its fan-in that must be salient, or a unit is ablated; 0: none is")

    def update(self, conn: Connections, progress: Progress, rng: Rng, n_target: int) -> Update:
        """One topology change; every living unit has ``n_target // living`` connections afterwards."""
        n_drop = min(self.drop_count(conn, progress), conn.nnz)
        large = keep_best(conn.weight.abs(), conn.nnz - n_drop)
        alive = self._alive(conn, large, n_drop, n_target)
        fan_in = n_target // max(1, int(alive.sum()))
        score = torch.where(large & alive[conn.row], conn.weight.abs(), -1.0)
        keep = (score >= 0) & keep_best_per_row(score, conn.row, torch.tensor(fan_in, device=score.device).expand(conn.n_out))
        kept = conn.select(keep)
        return Update(keep, kept.best_absent_per_row(kept.per_row().neg_().add_(fan_in).mul_(alive)))

    def _alive(self, conn: Connections, large: Tensor, n_drop: int, n_target: int) -> Tensor:
        """``(n_out,)`` bool: the output units that stay; enough to hold what was asked, and never more than there are connections for."""
        ablates = self.gamma and not conn.is_last and not conn.constant_fan_in
        salient = conn.select(large).per_row()
        if ablates:
            grown = conn.best_absent(n_drop)[0]
            salient.index_add_(0, grown, torch.ones_like(grown))
        alive = keep_best(salient, min(n_target, conn.n_out))
        if ablates:
            fan_in = conn.nnz / max(1, int(torch.count_nonzero(conn.per_row())))
            strongest = keep_best(salient, -(-n_target // conn.n_in))  # fewer units could not hold what was asked
            alive &= strongest | (salient >= min(max(1.0, self.gamma * fan_in), float(salient.max())))
        return alive


@hookimpl
def sparsefleet_rewirers() -> list[type[Rewirer]]:
    """Registers this module's rewirer."""
    return [SRigL]
