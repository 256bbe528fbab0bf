"""The multi-layer perceptron."""

import pytest
import torch
from pydantic import ValidationError
from sparsefleet_plugins.models.mlp import Mlp
from torch import nn

from sparsefleet import DataInfo

MNIST = DataInfo("classification", (1, 28, 28), 10)


def build(**params):
    with torch.device("meta"):
        return Mlp(**params).build(MNIST, lambda _: nn.ReLU())


def test_source_004s_network():
    network = build(hidden=[2000], norm="layer")
    assert [name for name, _ in network.named_children()] == ["flatten", "fc1", "norm1", "act1", "fc2"]
    assert sum(p.numel() for p in network.parameters()) == 1_590_010 + 2 * 2000  # the document counts the two Linear layers


def test_lenet_300_100_is_the_default():
    network = build()
    assert sum(p.numel() for p in network.parameters()) == 266_610
    assert list(Mlp().prunable(network)) == ["fc1", "fc2", "fc3"]


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_names_do_not_depend_on_the_norm(norm):
    assert list(Mlp(norm=norm).prunable(build(hidden=[8, 9, 10], norm=norm))) == ["fc1", "fc2", "fc3", "fc4"]


def test_each_activation_knows_its_features():
    seen = []
    Mlp(hidden=[8, 9]).build(MNIST, lambda features: seen.append(features) or nn.ReLU())
    assert seen == [8, 9]


def test_narrowed():
    assert Mlp(hidden=[300, 100]).narrowed(0.101).hidden == (30, 10)
    assert Mlp(hidden=[300, 1]).narrowed(1e-9).hidden == (1, 1)
    assert Mlp(norm="batch").narrowed(0.5).norm == "batch"


@pytest.mark.parametrize("hidden", [[], [0], [-3], "wide"])
def test_refuses_nonsense(hidden):
    with pytest.raises(ValidationError):
        Mlp(hidden=hidden)
