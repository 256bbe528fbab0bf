"""relu and k-winners, against a slow reference written from arXiv 1903.11257, section 3.2."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from sparsefleet_plugins.activations.k_winners import KWinners, winners
from sparsefleet_plugins.activations.relu import Relu

from sparsefleet import Rng


def normal(*shape, seed=0):
    return Rng("x", seed).normal(math.prod(shape)).float().view(shape)


class Slow:
    """The paper's rules with lists: boosted ranking, un-boosted output, duty cycle as an average over samples."""

    def __init__(self, n, k, beta, period):
        self.k, self.beta, self.period, self.seen, self.duty = k, beta, period, 0, [0.0] * n

    def train(self, batch):
        target = self.k / len(self.duty)
        out = []
        for x in batch:
            boosted = [v * math.exp(self.beta * (target - d)) for v, d in zip(x, self.duty, strict=True)]  # the paper's form
            top = set(sorted(range(len(x)), key=lambda i: (-boosted[i], i))[: self.k])
            out.append([v if i in top else 0.0 for i, v in enumerate(x)])
        self.seen += len(batch)
        p = max(len(batch), min(self.period, self.seen))
        for i in range(len(self.duty)):
            active = sum(row[i] != 0 for row in out)
            self.duty[i] = ((p - len(batch)) * self.duty[i] + active) / p
        return out


def test_relu():
    assert Relu().build(3)(torch.tensor([[-1.0, 0.0, 2.0]])).tolist() == [[0.0, 0.0, 2.0]]
    assert not Relu.sparse
    assert KWinners.sparse


def test_a_worked_example():
    module = KWinners(density=0.5, boost=0.0).build(4)
    assert module(torch.tensor([[1.0, 3.0, 2.0, -5.0], [4.0, 4.0, 4.0, 4.0]])).tolist() == [[0, 3, 2, 0], [4, 4, 0, 0]]


@pytest.mark.parametrize(("batch", "period"), [(8, 1000), (8, 24), (8, 3)])
def test_training_equals_the_slow_reference(batch, period):
    module = KWinners(density=0.35, boost=1.5, duty_period=period).build(20).double()
    slow = Slow(20, 7, 1.5, period)
    for step in range(12):
        x = normal(batch, 20, seed=step).double().abs() + 0.01 * step
        assert torch.allclose(module(x), torch.tensor(slow.train(x.tolist()), dtype=torch.float64), rtol=1e-12)
        assert torch.allclose(module.duty, torch.tensor(slow.duty, dtype=torch.float64), rtol=1e-9)
    assert 0 <= module.duty.min() <= module.duty.max() <= 1  # a batch sum in place of a mean would give up to 8


def test_boosting_gives_idle_units_a_turn():
    module = KWinners(density=0.25, boost=1.5).build(4)
    x = torch.tensor([[1.0, 0.9, 0.1, 0.1]])
    won = {int(module(x).argmax()) for _ in range(10)}
    assert won == {0, 1}
    assert module.eval()(x).argmax() == 0  # no boosting at evaluation, whatever the duty cycle says


def test_source_004_has_700_winners_of_2000_without_relu():
    module = KWinners().build(2000)
    x = torch.nn.functional.layer_norm(normal(64, 2000), (2000,))
    y = module(x)
    assert (y != 0).sum(1).tolist() == [700] * 64
    assert (y[y != 0] > 0).all()  # with 35 % winners of centred inputs, none is negative


def test_output_is_not_boosted_and_gradient_passes_to_winners_only():
    module = KWinners(density=0.5, boost=3.0).build(6)
    for step in range(3):
        module(normal(4, 6, seed=step))
    x = normal(4, 6, seed=9).requires_grad_()
    y = module(x)
    y.sum().backward()
    assert torch.equal(y[y != 0], x.detach()[y != 0])
    assert torch.equal(x.grad, (y != 0).float())


@given(st.lists(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=6, max_size=6), min_size=1, max_size=5), st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_winners_are_exactly_k_by_score_and_position(rows, k):
    """nupic's threshold lets more than k through when scores tie."""
    got = winners(torch.tensor(rows), k)
    for row, mask in zip(rows, got.tolist(), strict=True):
        assert {i for i, won in enumerate(mask) if won} == set(sorted(range(6), key=lambda i: (-row[i], i))[:k])


def test_a_negative_winner_counts_as_active():
    module = KWinners(density=1.0).build(2)
    module(torch.tensor([[-1.0, 2.0]]))
    assert module.duty.tolist() == [1.0, 1.0]
    rectified = KWinners(density=1.0, relu=True).build(2)
    assert rectified(torch.tensor([[-1.0, 2.0]])).tolist() == [[0.0, 2.0]]
    assert rectified.duty.tolist() == [0.0, 1.0]


def test_k_at_inference():
    module = KWinners(density=0.2, k_inference_factor=1.5).build(20)
    x = normal(3, 20).abs()
    assert (module(x) != 0).sum(1).tolist() == [4] * 3
    assert (module.eval()(x) != 0).sum(1).tolist() == [6] * 3


def test_boost_decays_once_per_epoch():
    module = KWinners(boost=2.0, boost_factor=0.5).build(3)
    module.on_epoch()
    module.on_epoch()
    assert float(module.boost) == 0.5


def test_everything_that_training_changes_is_saved():
    module = KWinners().build(5)
    module(normal(7, 5))
    module.on_epoch()
    assert set(module.state_dict()) == {"duty", "seen", "boost"}
    assert int(module.state_dict()["seen"]) == 7
    again = KWinners().build(5)
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(normal(7, 5, seed=2)), module(normal(7, 5, seed=2)))


def test_images_share_k_over_all_places_and_duty_by_channel():
    module = KWinners(density=0.25).build(3)
    y = module(normal(5, 3, 4, 4))
    assert (y != 0).sum((1, 2, 3)).tolist() == [12] * 5
    assert torch.allclose(module.duty, (y != 0).float().mean((0, 2, 3)))
    assert module(normal(5, 3, 6, 6)).count_nonzero() == 5 * 27  # another picture size


def test_nan_is_not_hidden():
    x = torch.ones(1, 10)
    x[0, 9] = math.nan
    assert torch.isnan(KWinners(density=0.1).build(10)(x)).any()
