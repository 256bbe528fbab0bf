"""k-winners-2d, top-k and threshold against slow references with lists."""

import copy
import math

import pytest
import torch
from sparsefleet_plugins.activations.k_winners import KWinners
from sparsefleet_plugins.activations.k_winners_2d import KWinners2d
from sparsefleet_plugins.activations.threshold import Threshold
from sparsefleet_plugins.activations.top_k import TopK

from sparsefleet import Rng


def normal(*shape, seed=0):
    return Rng("x", seed).normal(math.prod(shape)).view(shape)


class Slow2d:
    """arXiv 1903.11257, section 3.2, for (channels, height, width): boosting and duty by channel, winners of a sample or of a place."""

    def __init__(self, channels, density, beta, period, scope):
        self.density, self.beta, self.period, self.scope = density, beta, period, scope
        self.seen, self.duty = 0, [0.0] * channels

    def winners(self, sample, boosting):
        channels, height, width = sample.shape
        units = [(c, i, j) for c in range(channels) for i in range(height) for j in range(width)]
        boosted = {(c, i, j): float(sample[c, i, j]) * (math.exp(-self.beta * self.duty[c]) if boosting else 1) for c, i, j in units}
        groups = [units] if self.scope == "global" else [[(c, i, j) for c in range(channels)] for i in range(height) for j in range(width)]
        chosen = set()
        for group in groups:
            k = max(1, round(self.density * len(group)))
            chosen |= set(sorted(group, key=lambda unit: (-boosted[unit], unit))[:k])
        return chosen

    def train(self, batch):
        out = torch.zeros_like(batch)
        for n, sample in enumerate(batch):
            for unit in self.winners(sample, boosting=True):
                out[(n, *unit)] = sample[unit]
        self.seen += len(batch)
        period = max(len(batch), min(self.period, self.seen))
        places = batch.shape[2] * batch.shape[3]
        for c in range(len(self.duty)):
            active = int((out[:, c] != 0).sum()) / places  # the share of the channel's units, summed over the samples
            self.duty[c] = ((period - len(batch)) * self.duty[c] + active) / period
        return out


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("period", [1000, 12, 3])
def test_k_winners_2d_equals_the_slow_reference(scope, period):
    """Also where the pictures change their size from batch to batch."""
    module = KWinners2d(density=0.3, boost=1.5, duty_period=period, scope=scope).build(5).double()
    slow = Slow2d(5, 0.3, 1.5, period, scope)
    for step in range(8):
        x = normal(4, 5, 3 + step % 2, 4, seed=step).abs() + 0.01
        assert torch.equal(module(x), slow.train(x))
        assert torch.allclose(module.duty, torch.tensor(slow.duty, dtype=torch.float64), rtol=1e-9)
    x = normal(2, 5, 6, 6, seed=99)
    y = module.eval()(x)
    for sample, out in zip(x, y, strict=True):
        assert {tuple(unit) for unit in out.nonzero().tolist()} == slow.winners(sample, boosting=False)


def test_global_is_k_winners_over_the_whole_picture():
    one, other = KWinners(density=0.2).build(6), KWinners2d(density=0.2).build(6)
    for step in range(5):
        x = normal(3, 6, 4, 4, seed=step).float()
        assert torch.equal(one(x), other(x))
    assert torch.equal(one.duty, other.duty)


def test_local_has_as_many_winners_at_every_place():
    y = KWinners2d(density=0.25, scope="local").build(8)(normal(3, 8, 5, 5))
    assert (y != 0).sum(1).unique().tolist() == [2]
    busy = normal(3, 8, 5, 5).abs()
    busy[:, :, 0, 0] += 100
    whole = KWinners2d(density=0.05).build(8)(busy)
    assert (whole[:, :, 0, 0] != 0).sum(1).tolist() == [8] * 3  # global: the busy place takes what it can


def test_local_ties_go_to_the_earlier_channel():
    y = KWinners2d(density=0.5, scope="local").build(4)(torch.ones(1, 4, 2, 3))
    assert y[0, :, 0, 0].tolist() == [1, 1, 0, 0]
    assert (y != 0).sum() == 12


def test_duty_is_divided_by_the_places_and_stays_a_share():
    module = KWinners2d(density=1.0, boost=0.0, scope="local").build(3)
    for size in (2, 7, 3):
        module(normal(4, 3, size, size).abs() + 1)
    assert module.duty.tolist() == pytest.approx([1.0] * 3)


def test_two_dimensional_inputs_are_units_without_places():
    for scope in ("global", "local"):
        x = normal(6, 20)
        assert torch.equal(KWinners2d(density=0.3, scope=scope).build(20)(x), KWinners(density=0.3).build(20)(x))


@pytest.mark.parametrize("plugin", [KWinners(), KWinners2d(scope="local")], ids=lambda p: p.name)
def test_all_state_is_saved_and_moves_with_the_module(plugin):
    module = plugin.build(6)
    module(normal(5, 6, 3, 3).float())
    module.on_epoch()
    assert set(module.state_dict()) == {"duty", "seen", "boost"}
    again = copy.deepcopy(module).to(torch.float64).to(torch.float32)
    x = normal(5, 6, 3, 3, seed=2).float()
    assert torch.equal(again(x), module(x))
    assert torch.equal(again.duty, module.duty)


@pytest.mark.parametrize("plugin", [KWinners(), KWinners2d(scope="local"), TopK(), Threshold()], ids=lambda p: p.name)
def test_evaluation_changes_nothing(plugin):
    module = plugin.build(6).eval()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    x = normal(5, 6, 3, 3)
    assert torch.equal(module(x), module(x))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_a_batch_above_the_period_does_not_turn_the_duty_negative():
    module = KWinners2d(duty_period=2, density=0.5).build(4)
    for step in range(4):
        module(normal(64, 4, 2, 2, seed=step))
        assert 0 <= module.duty.min() <= module.duty.max() <= 1


# Top-k


@pytest.mark.parametrize("shape", [(4, 12), (4, 3, 2, 2)])
def test_top_k_by_lists(shape):
    x = normal(*shape)
    y = TopK(density=0.25).build(shape[1])(x)
    for row, out in zip(x.flatten(1).tolist(), y.flatten(1).tolist(), strict=True):
        chosen = sorted(range(12), key=lambda i: (-row[i], i))[:3]
        assert out == [value if i in chosen else 0.0 for i, value in enumerate(row)]


def test_top_k_has_exactly_k_at_ties_and_passes_gradient_to_winners_only():
    x = torch.full((2, 10), 3.0, requires_grad=True)
    y = TopK(density=0.3).build(10)(x)
    assert y.tolist() == [[3.0] * 3 + [0.0] * 7] * 2
    y.sum().backward()
    assert torch.equal(x.grad, (y != 0).float())


def test_top_k_keeps_no_state_and_does_the_same_in_both_modes():
    module, x = TopK(density=0.3).build(10), normal(4, 10)
    assert not module.state_dict()
    assert torch.equal(module.train()(x), module.eval()(x))
    assert (TopK(density=0.001).build(10)(x) != 0).sum(1).tolist() == [1] * 4  # at least one


# Threshold


def test_threshold_by_hand():
    x = torch.tensor([[-1.0, 0.0, 0.5, 0.5001, 2.0]], requires_grad=True)
    y = Threshold(threshold=0.5).build(5)(x)
    assert y.tolist() == [[0.0, 0.0, 0.0, pytest.approx(0.5001), 2.0]]
    y.sum().backward()
    assert x.grad.tolist() == [[0.0, 0.0, 0.0, 1.0, 1.0]]
    assert torch.equal(Threshold(threshold=0).build(20)(normal(4, 20)), normal(4, 20).relu())


def test_which_activations_leave_zeros_by_their_own_setting():
    assert KWinners2d.sparse
    assert TopK.sparse
    assert Threshold.sparse
