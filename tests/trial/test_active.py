"""Zeros and saved multiply-adds, counted by hand on nets of a few units."""

import itertools

import pytest
import torch
from sparsefleet_plugins.activations.k_winners import KWinners, KWinnersModule
from sparsefleet_plugins.activations.relu import Relu
from torch import nn

from sparsefleet.connections import Connections
from sparsefleet.nn import LayerNorm
from sparsefleet.nn.csr import CsrLinear
from sparsefleet.nn.masked import MaskedModule
from sparsefleet.rng import Rng
from sparsefleet.trial.active import active_figures, multiply_adds


def identity_net(last: nn.Module) -> nn.Sequential:
    """Passes its inputs on to relu and then to ``last``."""
    first = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.eye(4))
    return nn.Sequential(first, nn.ReLU(), last)


X = torch.tensor([[1.0, -1.0, -1.0, 2.0], [-3.0, -1.0, 0.5, 0.25]])  # after relu zero: units 1 and 2, then 0 and 1


def by_hand(weight, x, *, stride=1, padding=0, groups=1):
    """Connections on live inputs, and those that meet a zero: every output, place and kernel element in turn."""
    n_out, per_group = weight.shape[:2]
    zero = total = 0
    for sample, o in itertools.product(range(len(x)), range(n_out)):
        first = o // (n_out // groups) * per_group
        for i in range(0, x.shape[2] + 2 * padding - weight.shape[2] + 1, stride):
            for j in range(0, x.shape[3] + 2 * padding - weight.shape[3] + 1, stride):
                for c, a, b in itertools.product(range(per_group), range(weight.shape[2]), range(weight.shape[3])):
                    row, col = i + a - padding, j + b - padding
                    if weight[o, c, a, b] and 0 <= row < x.shape[2] and 0 <= col < x.shape[3]:
                        total += 1
                        zero += int(x[sample, first + c, row, col] == 0)
    return zero, total


def masked(layer: nn.Module, density: float) -> MaskedModule:
    layer.weight.data.fill_(1)
    mask = (Rng("mask").uniform(layer.weight.numel()) < density).view_as(layer.weight)
    layer.weight.data *= mask
    return MaskedModule(layer, mask)


def test_a_dense_net_by_hand():
    found = active_figures(identity_net(nn.Linear(4, 3)), X, nn.ReLU)
    assert found == {"activation_zeros/1": 4 / 8, "multiply_adds_saved/2": 12 / 24, "multiply_adds_saved": 12 / 24}


def test_a_sparse_layer_counts_the_connections_of_the_silent_units():
    conn = Connections("fc", (3, 4), torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 1, 1, 1, 3]), torch.ones(5))
    found = active_figures(identity_net(CsrLinear.from_connections(conn, None)), X, nn.ReLU)
    # fan-outs 1, 3, 0, 1: the first sample silences units 1 and 2 (3 connections), the second 0 and 1 (4)
    assert found["multiply_adds_saved"] == 7 / 10


def test_a_masked_linear_layer_is_counted_once():
    found = active_figures(identity_net(masked(nn.Linear(4, 3), 0.5)), X, nn.ReLU)
    assert [name for name in found if name.startswith("multiply")] == ["multiply_adds_saved/2", "multiply_adds_saved"]


@pytest.mark.parametrize(("stride", "padding", "groups"), [(1, 0, 1), (2, 1, 1), (1, 2, 2), (1, 1, 4)])
@pytest.mark.parametrize("density", [1.0, 0.4])
def test_convolutions_equal_loops(stride, padding, groups, density):
    layer = nn.Conv2d(4, 8, 3, stride=stride, padding=padding, groups=groups)
    x = Rng("picture").normal(2 * 4 * 5 * 6).float().view(2, 4, 5, 6).relu()
    if density < 1:
        layer = masked(layer, density)
    weight = layer.weight.detach()
    assert multiply_adds(layer, x) == by_hand(weight, x, stride=stride, padding=padding, groups=groups)


def test_the_layer_behind_pooling_sees_what_pooling_leaves():
    net = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 1))
    x = torch.tensor([[[[-1.0, -1.0, -1.0, 5.0], [-1.0, -1.0, -1.0, -1.0]]]])
    assert active_figures(net, x, nn.ReLU) == {"activation_zeros/0": 7 / 8, "multiply_adds_saved/3": 0.5, "multiply_adds_saved": 0.5}


def test_the_first_layer_sees_data_and_does_not_count():
    found = active_figures(identity_net(nn.Linear(4, 3)), torch.zeros(5, 4), nn.ReLU)
    assert "multiply_adds_saved/0" not in found
    assert found["multiply_adds_saved"] == 1.0


def test_shares_of_the_whole_are_weighted_by_multiply_adds():
    net = nn.Sequential(nn.ReLU(), nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 1))
    with torch.no_grad():
        net[1].weight.fill_(0)
        net[1].bias.fill_(1)
    found = active_figures(net, X, nn.ReLU)
    assert found["multiply_adds_saved/1"] == 0.5
    assert found["multiply_adds_saved/3"] == 0
    assert found["multiply_adds_saved"] == 400 / (800 + 200)


def test_a_relu_inside_a_fused_norm_keeps_its_name():
    norm = LayerNorm(4, relu=True)
    net = nn.Sequential(norm, nn.Identity(), nn.Linear(4, 2))
    plain = nn.Sequential(nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2))
    assert active_figures(net, X, nn.ReLU) == active_figures(plain, X, nn.ReLU)
    assert active_figures(plain, X, nn.ReLU)["activation_zeros/1"] > 0


def test_the_share_is_measured_not_the_setting():
    """Half of k-winners' density asked for, a quarter of the inputs positive behind its own relu."""
    module = KWinners(density=0.5, relu=True).build(4)
    x = torch.tensor([[1.0, -1.0, -1.0, -1.0]])
    assert active_figures(nn.Sequential(module, nn.Linear(4, 2)), x, KWinnersModule)["activation_zeros/0"] == 0.75


def test_the_network_stays_as_it_was():
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), KWinners(density=0.5).build(6), nn.Dropout(0.5), nn.Linear(6, 2))
    net[3].eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    torch.manual_seed(3)
    drawn = torch.get_rng_state()
    found = active_figures(net, X, KWinnersModule)
    assert found["activation_zeros/2"] == 0.5
    assert [module.training for module in net] == [True, True, True, False, True]
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_no_activation_no_figures():
    assert active_figures(nn.Sequential(nn.Linear(4, 2)), X, type(Relu().build(1))) == {}
