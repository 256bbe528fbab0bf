"""MEST (arXiv 2110.14032): elastic mutation with a soft memory bound; a layer holds more than it was asked, and less and less of it."""

from typing import ClassVar

from pydantic import Field, model_validator
from torch import Tensor

from sparsefleet import Connections, Progress, Rewirer, Rng, Update, hookimpl, keep_best, keep_best_per_row


class Mest(Rewirer):
    """Every few epochs prunes to a lower bound and grows at random sites to an upper one; the bounds shrink to the asked density.

    Bounds are multiples of what was asked, one per phase, and training starts at the first upper one. Phases begin at the shares of the
    training in ``switch``, with an update of their own: from the last on the layer has exactly what was asked. The defaults are the authors'
    ResNet-32 run at sparsity 0.9: 0.85, 0.875 from epoch 90 of 160, 0.9 from epoch 120.
    """

    name = "mest"
    paper = "arXiv 2110.14032 (MEST+EM&S); bounds of the authors' code"
    rule = "every 5 epochs: keep the lower_p nnz highest |w| + lambda |dL/dw|, then grow to upper_p nnz at random absent sites, weight 0"
    cannot = "Before the last phase a layer holds more connections than asked: its memory and time are those of the upper bound."
    needs_grad = varies_nnz = True
    fits_tiles = False
    every: ClassVar[int | None] = None
    drop_fraction: ClassVar[float] = 0.0
    stop: ClassVar[float] = 1.0
    every_epochs: int = Field(5, ge=1, description="epochs between updates")
    lower: tuple[float, ...] = Field((1.0, 1.0, 1.0), description="of each phase: what pruning leaves, over the asked connections")
    upper: tuple[float, ...] = Field((1.5, 1.25, 1.0), description="of each phase: what growing leads to, over the asked; the last is 1")
    switch: tuple[float, ...] = Field((0.5625, 0.75), description="shares of the training at which the next phase begins")
    gradient_weight: float = Field(0.0, ge=0, description="lambda: weight of |dL/dw| in the score; 0 in the authors' code")

    @model_validator(mode="after")
    def _phases(self) -> "Mest":
        if not len(self.lower) == len(self.upper) == len(self.switch) + 1:
            raise ValueError("lower and upper need one bound per phase, one more than switch has shares")
        if any(not 0 < low <= high for low, high in zip(self.lower, self.upper, strict=True)) or self.upper[-1] != 1:
            raise ValueError("each lower bound must be above 0 and at most its upper bound, and the last upper bound 1")
        if any(not 0 < share < 1 for share in self.switch) or sorted(set(self.switch)) != list(self.switch):
            raise ValueError("switch must be ascending shares between 0 and 1")
        return self

    def first_density(self, density: float) -> float:
        """The first upper bound."""
        return min(1.0, self.upper[0] * density)

    def due(self, progress: Progress) -> bool:
        """Every so many epochs, and when a phase begins. Not at the end, where what grows is never trained, unless a phase begins there."""
        if progress.step == 0:
            return False
        before = Progress(progress.step - 1, progress.total_steps, progress.steps_per_epoch)
        in_time = progress.step % (self.every_epochs * progress.steps_per_epoch) == 0 and progress.step < progress.total_steps
        return in_time or self._phase(progress) != self._phase(before)

    def _phase(self, progress: Progress) -> int:
        return sum(progress.fraction >= share - 1e-9 for share in self.switch)

    def drop_score(self, conn: Connections) -> Tensor:
        """``|w| + lambda |dL/dw|``."""
        score = conn.weight.abs()
        if self.gradient_weight and conn.grad is not None:
            score = score.add(conn.grad.abs(), alpha=self.gradient_weight)
        return score

    def update(self, conn: Connections, progress: Progress, rng: Rng, n_target: int) -> Update:
        """Down to the phase's lower bound, up to its upper one."""
        phase = self._phase(progress)
        n_low, n_high = (self._held(conn, bound * n_target) for bound in (self.lower[phase], self.upper[phase]))
        score, n_low = self.drop_score(conn), min(n_low, conn.nnz)
        if conn.constant_fan_in:
            keep = keep_best_per_row(score, conn.row, conn.per_row().clamp(max=n_low // conn.n_out))
        else:
            keep = keep_best(score, n_low)
        kept = conn.select(keep)
        return Update(keep, kept.random_absent(n_high - kept.nnz, rng))

    @staticmethod
    def _held(conn: Connections, wanted: float) -> int:
        """The count nearest to ``wanted`` that the layer can hold."""
        unit = conn.n_out if conn.constant_fan_in else 1
        return min(conn.n_sites, unit * round(wanted / unit))


@hookimpl
def sparsefleet_rewirers() -> list[type[Rewirer]]:
    """Registers this module's rewirer."""
    return [Mest]
