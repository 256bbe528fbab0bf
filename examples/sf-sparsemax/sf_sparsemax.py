"""Sparsemax as a hidden activation.

Martins and Astudillo, From Softmax to Sparsemax: A Sparse Model of Attention and Multi-Label Classification, arXiv 1602.02068.
"""

import torch
from pydantic import Field
from sparsefleet import Activation, hookimpl


class Sparsemax(torch.nn.Module):
    """The nearest point with no negative coordinate and the sum ``total``, of each sample's units (of each place's channels)."""

    def __init__(self, total: float) -> None:
        super().__init__()
        self.total = total

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x - x.detach().amax(1, keepdim=True)  # adding a constant changes nothing, and small numbers are exact
        largest = x.sort(1, descending=True).values
        sums = largest.cumsum(1)
        rank = torch.arange(1, x.shape[1] + 1, device=x.device).view(-1, *[1] * (x.dim() - 2))
        size = (self.total + rank * largest > sums).sum(1, keepdim=True).clamp(min=1)  # units of the support; nan has none
        tau = (sums.gather(1, size - 1) - self.total) / size
        return torch.relu(x - tau)


class SparsemaxActivation(Activation):
    """Projects a sample's units onto the simplex: subtracts one threshold, chosen so that what stays above zero adds up to ``total``.

    How many units stay depends on the sample. Its gradient is that of the projection, through the threshold too.
    """

    name = "sparsemax"
    paper = "arXiv 1602.02068, Eq. 2 with the closed form of Proposition 1 (Algorithm 1); gradient: section 2.5"
    rule = "y = max(x - tau, 0); tau = (sum of the k largest x - total) / k, k the largest with total + k x_(k) > sum of the k largest"
    cannot = "hold an exact number of units (use top-k); pass on a sample's scale: the outputs add up to the same for every sample."
    sparse = True
    total: float = Field(1.0, gt=0, le=1e6, description="what the outputs add up to; 1 is the paper's, more leaves more units active")

    def build(self, features: int) -> Sparsemax:
        return Sparsemax(self.total)


@hookimpl
def sparsefleet_activations() -> list[type[Activation]]:
    return [SparsemaxActivation]
