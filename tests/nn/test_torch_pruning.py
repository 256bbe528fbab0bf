"""Our compact networks against those that Torch-Pruning (DepGraph, arXiv 2301.12900) makes of the same network without the same units."""

import copy
import warnings

import pytest
import torch
import torch_pruning as tp
from torch import nn
from unit_nets import NETS, made

from sparsefleet.nn.compact import narrow
from sparsefleet.nn.unit_pruning import Units
from sparsefleet.nn.units import units_of


def both(network, x, share=0.5):
    """Ours, theirs; the units that go are drawn, the same for both."""
    gen = torch.Generator().manual_seed(1)
    groups, kept = units_of(network), []
    for group in groups:
        kept.append(torch.ones(group.size, dtype=torch.bool))
        if not (group.fixed or group.lost):
            kept[-1][torch.randperm(group.size, generator=gen)[: int(share * group.size)]] = False
    ours, theirs = copy.deepcopy(network), copy.deepcopy(network)
    narrow(ours, Units(groups, kept, ()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph().build_dependency(theirs, example_inputs=x)
        for group, alive in zip(groups, kept, strict=True):
            if not alive.all():
                module = theirs.get_submodule(group.writers[0])
                prune = tp.prune_conv_out_channels if isinstance(module, nn.Conv2d) else tp.prune_linear_out_channels
                graph.get_pruning_group(module, prune, idxs=torch.nonzero(~alive).flatten().tolist()).prune()
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize("name", NETS)
def test_small_networks(name):
    network, x = made(name)
    ours, theirs = both(network, x)
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }
    assert torch.equal(ours(x), theirs(x))


def test_resnet_18():
    from torchvision.models import resnet18

    torch.manual_seed(0)
    network, x = resnet18(num_classes=10).eval(), torch.randn(2, 3, 64, 64)
    ours, theirs = both(network, x)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert torch.equal(ours(x), theirs(x))
