"""k-winners with boosting (arXiv 1903.11257, section 3.2): in every sample only the k strongest units speak."""

import torch
from pydantic import Field
from torch import Tensor, nn

from sparsefleet import Activation, hookimpl


class KWinners(Activation):
    """Passes on the k units with the largest boosted value, un-boosted, and zeroes the rest.

    Boosting multiplies by ``exp(-boost * duty)``. The paper's ``exp(boost * (target - duty))`` differs by a factor that all units of a layer
    share, so the winners are the same. Without ``relu`` a winner may be negative when density exceeds the share of positive inputs.
    """

    name = "k-winners"
    paper = "arXiv 1903.11257, section 3.2"
    rule = "y = x where x exp(-boost duty) is among the k largest of its sample, else 0; duty: running share of samples in which the unit was active"
    cannot = "Boosting units that are mostly negative: there it favours busy ones. Put it behind a norm and keep density low, or set relu."
    sparse = True

    density: float = Field(0.35, gt=0, le=1, description="share of units that win: 0.35 is an activation sparsity of 0.65")
    boost: float = Field(1.5, ge=0, description="boost strength at the start (beta)")
    boost_factor: float = Field(0.85, gt=0, le=1, description="boost strength is multiplied by this after each epoch")
    k_inference_factor: float = Field(1.0, gt=0, description="k at evaluation over k in training")
    duty_period: int = Field(1000, ge=1, description="samples over which a unit's duty cycle is averaged")
    relu: bool = Field(False, description="apply relu to the inputs first")

    def build(self, features: int) -> nn.Module:
        """The module for ``features`` units, or for that many channels."""
        return KWinnersModule(self, features)


class KWinnersModule(nn.Module):
    """Inputs ``(batch, features)`` or ``(batch, features, height, width)``; k counts all units of a sample, duty is per feature.

    Args:
        local: k counts the features of one place of a sample.
    """

    duty: Tensor
    seen: Tensor
    boost: Tensor

    def __init__(self, plugin: KWinners, features: int, *, local: bool = False) -> None:
        super().__init__()
        self.plugin, self.local = plugin, local
        self.register_buffer("duty", torch.empty(features))  # share of samples in which the unit was active
        self.register_buffer("seen", torch.empty((), dtype=torch.int64))  # training samples so far
        self.register_buffer("boost", torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Back to the state before training."""
        self.duty.zero_()
        self.seen.zero_()
        self.boost.fill_(self.plugin.boost)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as ``x``, with k non-zero units per sample, or per place, at most."""
        if self.plugin.relu:
            x = x.relu()
        n = x.shape[1] if self.local else x[0].numel()
        k = max(1, round(self.plugin.density * n))
        score = x.detach()
        if self.training:
            score = score * torch.exp(-self.boost * self.duty).view(-1, *[1] * (x.dim() - 2))
        else:
            k = min(n, max(1, round(k * self.plugin.k_inference_factor)))
        y = torch.where(self._winners(score, k), x, 0.0)
        if self.training:
            self._count(y.detach())
        return y

    def _winners(self, score: Tensor, k: int) -> Tensor:
        if not self.local:
            return winners(score.flatten(1), k).view_as(score)
        places = score.movedim(1, -1)
        return winners(places.reshape(-1, places.shape[-1]), k).view(places.shape).movedim(-1, 1)

    def on_epoch(self) -> None:
        """Weakens boosting; called at the end of each training epoch."""
        self.boost.mul_(self.plugin.boost_factor)

    def _count(self, y: Tensor) -> None:
        batch = y.shape[0]
        self.seen += batch
        period = self.seen.clamp(max=self.plugin.duty_period).clamp(min=batch)  # a batch above the period replaces the average
        active = (y != 0).to(self.duty.dtype)  # a negative winner is active, a winner at zero is not
        mean = active.mean([0, *range(2, y.dim())])
        self.duty += (mean - self.duty) * (batch / period)


def winners(score: Tensor, k: int) -> Tensor:
    """``(batch, n)`` bool with the k highest scores of each row True, of equal scores the earlier ones; NaN counts as highest."""
    last = score.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    above = ~(score <= last)
    tied = score == last
    return above | (tied & (tied.cumsum(1) <= k - above.sum(1, keepdim=True)))


@hookimpl
def sparsefleet_activations() -> list[type[Activation]]:
    """Registers this module's activation."""
    return [KWinners]
