"""The kit names each fault of activations that are wrong as public implementations are wrong."""

import pytest
import torch
from faults import assert_named, failed_checks
from pydantic import Field
from sparsefleet_plugins.activations.k_winners import KWinners, KWinnersModule, winners
from torch import nn

from sparsefleet import Activation


class _Winners(nn.Module):
    """The right one: the k largest of each sample."""

    def __init__(self, features):
        super().__init__()
        self.k = features // 4

    def forward(self, x):
        flat = x.flatten(1)
        k = max(1, flat.shape[1] // 4)
        return torch.where(self.wins(flat.detach(), k).view_as(x), x, 0.0)

    def wins(self, flat, k):
        return winners(flat, k)


class Threshold(_Winners):  # x >= the k-th value: all who tie win
    def wins(self, flat, k):
        return flat >= flat.topk(k).values[:, -1:]


class AcrossTheBatch(_Winners):  # the k largest of the whole batch
    def wins(self, flat, k):
        return winners(flat.reshape(1, -1), k * len(flat)).view_as(flat)


class Unseeded(_Winners):  # random winners in evaluation as well
    def wins(self, flat, k):
        return winners(torch.rand_like(flat), k)


class InPlace(_Winners):  # x[mask] = 0
    def forward(self, x):
        with torch.no_grad():
            x.mul_(self.wins(x.flatten(1), max(1, x[0].numel() // 4)).view_as(x))
        return x + 0


class SinglePrecision(_Winners):  # .float() inside
    def forward(self, x):
        return super().forward(x.float())


class StraightThrough(_Winners):  # y = x + (mask * x - x).detach(): losers learn as if they had won
    def forward(self, x):
        return x + (super().forward(x) - x).detach()


class Detached(_Winners):  # mask and values are both cut off
    def forward(self, x):
        return super().forward(x).detach()


class PlainDuty(_Winners):  # a duty cycle in a plain attribute: lost by a checkpoint
    def __init__(self, features):
        super().__init__(features)
        self.duty = torch.zeros(())

    def forward(self, x):
        if self.training:
            self.duty = self.duty + x.detach().abs().mean()
        return super().forward(x) / (1 + self.duty)


class LearnsInEvaluation(_Winners):  # counts whenever it is called
    def __init__(self, features):
        super().__init__(features)
        self.register_buffer("seen", torch.zeros(()))

    def reset_parameters(self):
        self.seen.zero_()

    def forward(self, x):
        self.seen += 1
        return super().forward(x)


class ForgetsToReset(_Winners):  # reset_parameters leaves a buffer as to_empty left it
    def __init__(self, features):
        super().__init__(features)
        self.register_buffer("scale", torch.ones(()))

    def reset_parameters(self):
        pass

    def forward(self, x):
        return super().forward(x) * self.scale


class UnseenStraightThrough(_Winners):  # losers learn, though what all units give adds up to a constant
    def forward(self, x):
        around = x - x.flip(1)
        return super().forward(x).detach() + around - around.detach()


class NotSparse(_Winners):  # declares sparse and lets everybody through
    def forward(self, x):
        return x * 1.5


class TwiceAsMany(KWinnersModule):  # k from another density than the declared one
    def _winners(self, score, k):
        return super()._winners(score, min(score[0].numel(), 2 * k))


class Root(nn.Module):  # torch.where(x > 0, sqrt(x), 0): the branch not taken gives its gradient all the same
    def forward(self, x):
        return torch.where(x > 0, x.sqrt(), 0.0)


class Overflows(nn.Module):  # swish written out: inf / inf
    def forward(self, x):
        return x * x.exp() / (1 + x.exp())


class CentresPictures(nn.Module):  # x.mean() over the whole batch where there are pictures
    def forward(self, x):
        return torch.relu(x - 0.1 * x.mean() if x.dim() == 4 else x)


class LastDimension(nn.Module):  # the units of (batch, features), and the width of a picture
    def forward(self, x):
        wins = x.topk(max(1, x.shape[-1] // 4), -1).indices
        return torch.zeros_like(x).scatter(-1, wins, x.gather(-1, wins))


class Views(nn.Module):  # .view(-1), while sparse layers give transposed outputs
    def forward(self, x):
        return torch.relu(x.view(-1)).view(x.shape)


class CountsEpochs(nn.Module):  # a warm-up counted in a plain attribute
    n = 0

    def on_epoch(self):
        self.n += 1

    def forward(self, x):
        return torch.relu(x) * (1 if self.n < 3 else 0.5)


@pytest.mark.parametrize(
    ("module", "check", "words"),
    [
        (Root, "passes_gradients", "finite gradients"),
        (Overflows, "passes_gradients", "finite outputs"),
        (CentresPictures, "takes_each_sample_by_itself", "picture"),
        (LastDimension, "takes_channels_as_units", "dimension 1"),
        (Views, "takes_channels_as_units", "reshape"),
        (CountsEpochs, "saves_what_it_learns", "counters as buffers"),
    ],
)
def test_each_fault_of_plain_activations_is_named(module, check, words):
    class Wrong(Activation):
        """Wrong in one way."""

        name = "wrong"

        def build(self, features):
            return module()

    assert_named(Wrong(), check, words)


@pytest.mark.parametrize(
    ("module", "check", "words"),
    [
        # ties, lying about its density
        (Threshold, "counts_winners_exactly", "tied inputs"),
        (NotSparse, "counts_winners_exactly", "sparse = False"),
        # order-dependent, non-deterministic, mutating
        (AcrossTheBatch, "takes_each_sample_by_itself", "within a sample"),
        (Unseeded, "is_deterministic", "draw nothing"),
        (InPlace, "keeps_shape_and_input", "written to"),
        # dtype, gradients
        (SinglePrecision, "keeps_the_dtype", "torch.float64"),
        (UnseenStraightThrough, "passes_gradients_where_units_won", "set to zero"),
        (StraightThrough, "passes_gradients_where_units_won", "set to zero"),
        (Detached, "passes_gradients", "detach"),
        # state
        (PlainDuty, "saves_what_it_learns", "buffers"),
        (LearnsInEvaluation, "learns_in_training_alone", "self.training"),
        (ForgetsToReset, "starts_from_meta", "reset_parameters"),
    ],
)
def test_each_fault_is_named(module, check, words):
    class Wrong(Activation):
        """Builds a wrong module."""

        name = "wrong"
        sparse = True
        density: float = Field(0.25, gt=0, le=1, description="share of units that win")

        def build(self, features):
            return module(features)

    assert_named(Wrong(), check, words)


def test_a_number_of_units_that_is_not_kept_is_named():
    class Wrong(Activation):
        """A quarter of the units, whatever k."""

        name = "wrong"
        sparse = True
        k: int = Field(4, ge=1, description="units that win")

        def build(self, features):
            return _Winners(features)

    assert_named(Wrong(), "has_the_density_that_it_declares", "4 of 40 units")


def test_a_density_that_is_not_kept_is_named():
    class Wrong(KWinners):
        """Lets twice as many through."""

        name = "wrong"

        def build(self, features):
            return TwiceAsMany(self, features)

    assert_named(Wrong(), "has_the_density_that_it_declares", "14 of 40 units")


def test_without_a_fault_nothing_fails():
    class Right(Activation):
        """The k largest of each sample."""

        name = "right"
        sparse = True
        density: float = Field(0.25, gt=0, le=1, description="share of units that win")

        def build(self, features):
            return _Winners(features)

    assert failed_checks(Right(), None) == {}


class _Sparsemax(nn.Module):  # equal units stay or go together, and the outputs of a sample add up to 1
    def forward(self, x):
        x = x - x.detach().amax(1, keepdim=True)
        largest = x.sort(1, descending=True).values
        sums = largest.cumsum(1)
        rank = torch.arange(1, x.shape[1] + 1).view(-1, *[1] * (x.dim() - 2))
        size = (1 + rank * largest > sums).sum(1, keepdim=True)
        return torch.relu(x - (sums.gather(1, size - 1) - 1) / size)


@pytest.mark.parametrize("build", [lambda: nn.Threshold(1.5, 0.0), _Sparsemax])
def test_a_sparse_one_that_promises_no_number_may_let_any_through(build):
    class Right(Activation):
        """What exceeds a threshold."""

        name = "right"
        sparse = True

        def build(self, features):
            return build()

    assert failed_checks(Right(), None) == {}


@pytest.mark.parametrize("build", [nn.PReLU, lambda features: nn.ELU(), lambda features: nn.RReLU(), lambda features: nn.Softmax(1)])
def test_activations_of_torch_pass(build):
    class Right(Activation):
        """Parameters, exponentials, draws in training, a sum over units."""

        name = "right"

        def build(self, features):
            return build(features)

    assert failed_checks(Right(), None) == {}
