"""Which rows, norms and columns belong to one unit, read from the graph; what cannot be followed is refused with its name."""

import pytest
import torch
from torch import nn
from unit_nets import Residual, conv, layer_norm

from sparsefleet.errors import UserError
from sparsefleet.nn.units import units_of


def told(network):
    return [(g.size, g.writers, g.readers, g.norms, bool(g.fixed), g.lost) for g in units_of(network) if g.size]


def test_a_convolution_is_read_by_kernels_and_by_the_places_of_its_flattened_map():
    assert told(conv()) == [
        (5, ["0"], {"4": 9}, ["1"], False, ""),
        (6, ["4"], {"8": 4}, [], False, ""),
        (8, ["8"], {"10": 1}, [], False, ""),
        (3, ["10"], {}, [], True, ""),
    ]


def test_an_addition_couples_what_is_added():
    assert told(Residual()) == [
        (6, ["stem", "outer"], {"inner": 9, "head": 1}, ["stem_norm", "outer_norm"], False, ""),
        (5, ["inner"], {"outer": 9}, ["inner_norm"], False, ""),
        (3, ["head"], {}, [], True, ""),
    ]


def test_norms_belong_to_the_units_before_them():
    assert [group[3] for group in told(layer_norm())] == [["1"], ["4"], []]


class _Net(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.first, self.second, self.last, self.act = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2), act

    def forward(self, x):
        return self.last(self.act(self, self.first(x)))


@pytest.mark.parametrize(
    ("act", "where"),
    [
        (lambda net, x: torch.cat([x[:, :3], x[:, 3:]], 1), "getitem"),
        (lambda net, x: x.softmax(1), "softmax"),
        (lambda net, x: net.second(net.second(x)), "second, which is called more than once"),
        (lambda net, x: x.view(2, -1), ""),
        (lambda net, x: x.sort(1).values, "sort"),
        (lambda net, x: x.t().contiguous().t(), "t"),
    ],
)
def test_what_cannot_be_followed_is_named(act, where):
    lost = {name: group.lost for group in units_of(_Net(act)) for name in group.writers}
    assert lost["first"] == where


def test_added_to_the_input_a_layers_units_stay():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.last(x + self.inner(x))

    fixed = {name: group.fixed for group in units_of(Around()) for name in group.writers}
    assert fixed["inner"] == "added to what no layer computes"


@pytest.mark.parametrize(
    ("layer", "lost"), [(nn.Conv2d(6, 6, 3, groups=6), "1 (Conv2d)"), (nn.GroupNorm(2, 6), "1 (GroupNorm)"), (nn.PReLU(6), "1 (PReLU)")]
)
def test_modules_that_mix_or_split_units_are_named(layer, lost):
    groups = units_of(nn.Sequential(nn.Conv2d(2, 6, 3), layer, nn.Conv2d(6, 3, 1)))
    assert next(group.lost for group in groups if group.writers == ["0"]) == lost


def test_a_graph_that_depends_on_values_is_refused():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UserError, match="graph cannot be traced"):
        units_of(Branching())
