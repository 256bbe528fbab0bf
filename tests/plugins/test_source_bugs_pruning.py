"""The pruning bugs of the source notebooks 000, 001 and 003: each of their rules, written again in a few lines, fails where ours holds."""

import math

import pytest
import torch
from small_net import examples, sparse_net, train_step
from sparsefleet_plugins.layers.masked import Masked
from sparsefleet_plugins.pruning.magnitude import Magnitude
from sparsefleet_plugins.pruning.random import Random
from torch import nn
from torch.nn import functional as F

from sparsefleet import Connections, Rng, UserError, keep_best
from sparsefleet.nn import Sparsifier
from sparsefleet.nn.topology import Topology
from sparsefleet.sparsity.schedule import density_at, pruning_steps
from sparsefleet.sparsity.vocabulary import Cubic, Linear, Row


def full(weight):
    """All connections of a ``(n_out, n_in)`` weight."""
    site = torch.arange(weight.numel())
    return Connections("layer", tuple(weight.shape), site // weight.shape[1], site % weight.shape[1], weight.reshape(-1))


def masked(weight):
    """A masked Linear of this weight, and its topology."""
    n_out, n_in = weight.shape
    module = Masked().build(nn.Linear(n_in, n_out, bias=False, device="meta"), full(weight), None)
    module.layer_name = "layer"
    return module, Topology({"layer": module}, None, seed=0)


# 000 and 003: thresholds in place of counts


def quantile_mask(weight, sparsity):
    """Sources 000 and 003."""
    return weight.abs() > torch.quantile(weight.abs().flatten(), sparsity)


def test_a_quantile_removes_everyone_who_ties():
    weight = torch.full((10, 10), 0.5)
    assert int(quantile_mask(weight, 0.8).sum()) == 0  # 80 % were asked to go
    _, topology = masked(weight)
    topology.prune(topology.score(Magnitude(), 0), 0.2)
    assert topology.nnz == 20


def test_a_quantile_of_weights_that_are_pruned_already_removes_nothing():
    """A second pruning at a lower sparsity than the share of zeros: the threshold is 0, and 003's count of zeros says it all went well."""
    weight = Rng("w").normal(100).view(10, 10)
    weight[quantile_mask(weight, 0.9).logical_not()] = 0
    assert float(torch.quantile(weight.abs().flatten(), 0.85)) == 0
    module, topology = masked(Rng("w").normal(100).view(10, 10))
    for density in (0.5, 0.1):
        topology.prune(topology.score(Magnitude(), 0), density)
        assert module.nnz == 100 * density


@pytest.mark.slow
def test_more_than_2_to_the_24_weights():
    """A 5000 x 5000 layer, or source 003's concatenation of all weights: torch.quantile refused it until 2.15, and misses the count since."""
    n = 20_000_000
    weight = (torch.arange(n, dtype=torch.float64) / n).float()
    try:
        n_kept = int((weight > torch.quantile(weight, 0.9)).sum())
    except RuntimeError:
        n_kept = None
    assert n_kept != n // 10
    keep = keep_best(weight, n // 10)
    assert int(keep.sum()) == n // 10
    assert bool(keep[-n // 10 + 1 :].all())  # ties at the edge go by position


def test_a_bernoulli_mask_misses_the_count():
    """Source 000's ``random_prune``; our count is exact for every seed."""
    counts = {int((Rng(seed).uniform(10_000) > 0.8).sum()) for seed in range(20)}
    assert len(counts) > 10
    for seed in range(20):
        module, _ = masked(torch.ones(100, 100))
        topology = Topology({"layer": module}, None, seed=seed)
        topology.prune(topology.score(Random(), 0), 0.2)
        assert module.nnz == 2000


def test_rows_are_removed_by_score_and_not_from_the_top():
    """Source 000's ``row`` pattern zeroes the first rows, whatever is in them."""
    weight = torch.ones(10, 4)
    weight[:3] = 5.0
    source = torch.ones(10, 4)
    source[: int(10 * 0.7)] = 0
    assert int((source * weight).sum()) == 12  # the seven lost rows held three times 20
    module, topology = masked(weight)
    topology.prune(topology.score(Magnitude(), 0), 0.3, pattern=Row())
    assert module.mask.all(1).tolist() == [True] * 3 + [False] * 7
    kept = set()
    for seed in range(30):
        module, _ = masked(torch.ones(10, 4))
        topology = Topology({"layer": module}, None, seed=seed)
        topology.prune(topology.score(Random(), 0), 0.3, pattern=Row())
        kept |= set(torch.nonzero(module.mask.all(1)).flatten().tolist())
    assert kept == set(range(10))


# 001: masks, thresholds by kthvalue, a schedule that compounds


class SourceLinear(nn.Module):
    """Source 001, slide 3."""

    def __init__(self, n_in, n_out, sparsity):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in))
        self.mask = nn.Parameter(torch.bernoulli(torch.full_like(self.weight, 1 - sparsity)))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x):
        return F.linear(x, self.weight * self.mask, self.bias)


def test_a_mask_is_no_parameter():
    """After ten steps of Adam no entry of the source's mask is 0 or 1, and nothing is sparse; the mask is counted among the parameters, too."""
    torch.manual_seed(0)
    x, y = torch.randn(32, 20), torch.randn(32, 8)
    source = SourceLinear(20, 8, 0.7)
    ours, topology = masked(Rng("w").normal(160).view(8, 20).float())
    topology.prune(topology.score(Magnitude(), 0), 0.3)
    before = ours.mask.clone()
    for module in (source, ours):
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
        for _ in range(10):
            optimizer.zero_grad()
            F.mse_loss(module(x), y).backward()
            optimizer.step()
            if module is ours:
                topology.enforce()
    assert int(((source.mask == 0) | (source.mask == 1)).sum()) == 0
    assert int((source.weight * source.mask == 0).sum()) == 0
    assert sum(p.numel() for p in source.parameters()) == 2 * 160 + 8
    assert ours.mask.dtype == torch.bool
    assert torch.equal(ours.mask, before)
    assert int((ours.weight != 0).sum()) == ours.nnz == 48
    assert sum(p.numel() for p in ours.parameters()) == 160


def test_kthvalue_is_off_by_one_and_crashes_at_zero():
    """Source 001, slides 9, 10 and 13: ``< kthvalue(k)`` spares the k-th, and a small layer or sparsity asks for the 0-th."""
    weight = Rng("w").normal(100)
    threshold = torch.kthvalue(weight.abs(), 50).values
    assert int((weight.abs() < threshold).sum()) == 49  # 50 were asked to go
    with pytest.raises((RuntimeError, IndexError)):
        torch.kthvalue(weight.abs(), int(0.005 * 100))
    module, topology = masked(weight.view(10, 10))
    topology.prune(topology.score(Magnitude(), 0), 1.0)  # nothing is asked to go yet
    assert module.nnz == 100
    topology.prune(topology.score(Magnitude(), 0), 0.995)
    assert module.nnz == 100
    topology.prune(topology.score(Magnitude(), 0), 0.5)
    assert module.nnz == 50


@pytest.mark.parametrize("total", [100, 1000])
def test_a_gradual_schedule_does_not_feed_itself(total):
    """Source 001, slide 5, adds a growing share of what is left to the *current* sparsity: 99 % of the way at 29 % or 9 % of the training."""
    target, sparsity, reached = 0.9, 0.0, None
    for step in range(total):
        sparsity += (target - sparsity) * step / total
        if reached is None and sparsity >= 0.99 * target:
            reached = step
    assert reached < 0.3 * total
    schedule = Linear(begin=0, end=1, every=1)
    assert 1 - density_at(schedule, reached, total, 1 - target) == pytest.approx(target * reached / total)
    module, topology = masked(Rng("w").normal(10_000).view(100, 100))
    for step in pruning_steps(schedule, total):
        topology.prune(topology.score(Magnitude(), step), density_at(schedule, step, total, 1 - target))
        assert module.nnz == pytest.approx(10_000 * (1 - target * step / total), abs=0.5 + 1e-6)
    assert module.nnz == 1000


def test_a_cubic_schedule_reaches_its_target_at_its_last_step():
    """Dividing by n + 1, as one public gradual pruning does, ends at 0.8958 of 0.9."""
    n, target = 5, 0.9
    assert target * (1 - (1 - n / (n + 1)) ** 3) == pytest.approx(0.8958, abs=1e-4)
    schedule = Cubic(begin=0, end=1, every=20)
    steps = pruning_steps(schedule, 100)
    assert len(steps) == n
    for i, step in enumerate(steps, 1):
        assert 1 - density_at(schedule, step, 100, 1 - target) == pytest.approx(target * (1 - (1 - i / n) ** 3))
    assert density_at(schedule, steps[-1], 100, 1 - target) == 1 - target


class SourceConv2d(nn.Module):
    """Source 001, slide 6."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.mask = nn.Parameter(torch.ones_like(self.conv.weight))


def test_pruning_one_layer_twice_or_none_is_never_silent():
    """Slides 9 and 10 look for nn.Linear and so do nothing to their own layers; slide 13 then looks for a weight that is not there."""

    def slide_9(module, sparsity):
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            weight = module.weight.data
            threshold = torch.kthvalue(weight.abs().view(-1), int(sparsity * weight.numel())).values
            weight[weight.abs() < threshold] = 0

    source = SourceLinear(20, 8, 0.0)
    slide_9(source, 0.5)
    assert int((source.weight == 0).sum()) == 0
    with pytest.raises(AttributeError, match="weight"):
        _ = SourceConv2d().weight
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))
    for density in (0.5, 0.25):  # the second time the layers are our own
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        Sparsifier(network, optimizer, density=density, total_steps=1, pruner="magnitude", layer="masked")
        masks = [module.mask for module in network.modules() if hasattr(module, "mask") and hasattr(module, "matrix_shape")]
        assert [mask.numel() for mask in masks] == [108, 80]
        assert sum(int(mask.sum()) for mask in masks) == 188 * density
    only = nn.Sequential(nn.LayerNorm(4), nn.ReLU())
    optimizer = torch.optim.SGD(only.parameters(), lr=0.1)
    with pytest.raises(UserError, match="no module"):
        Sparsifier(only, optimizer, density=0.5, total_steps=1, pruner="magnitude", layer="masked")


# 003: what is prunable, and whether it stays pruned


def test_what_is_prunable_goes_by_type_and_not_by_name():
    """Source 003 prunes every parameter with "weight" in its name, the gains of norms among them, and none of another name."""
    network = nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    for norm in (network[1], network[4]):
        nn.init.constant_(norm.weight, 1e-3)
    found = {name: parameter for name, parameter in network.named_parameters() if "weight" in name}
    threshold = torch.quantile(torch.cat([parameter.abs().flatten() for parameter in found.values()]), 0.5)
    assert not (found["1.weight"].abs() > threshold).any()  # every unit behind these norms is dead
    assert not (found["4.weight"].abs() > threshold).any()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    sparsifier = Sparsifier(network, optimizer, density=0.5, total_steps=1, pruner="magnitude", layer="masked", distribution="global")
    assert list(sparsifier.modules) == ["0", "3", "5"]
    assert bool((network[1].weight == 1e-3).all())
    assert bool((network[4].weight == 1e-3).all())
    assert sparsifier.topology.nnz == (96 + 64 + 32) / 2


OPTIMIZERS = {
    "momentum": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.01),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=0.01, momentum=0.9),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_pruned_weights_are_zero_after_every_step(kind):
    """Masking gradients alone leaves what momentum and decay do: the weights are set to zero, and the next step moves them away from it."""
    weight = nn.Parameter(Rng("w").normal(100).view(10, 10))
    optimizer, x = OPTIMIZERS[kind]([weight]), Rng("x").normal(80).view(8, 10)
    for step in range(3):
        optimizer.zero_grad()
        (x @ weight.T).square().mean().backward()
        if step == 2:
            gone = ~keep_best(weight.detach().abs().flatten(), 20).view(10, 10)
            weight.data[gone] = 0
            weight.grad[gone] = 0
        optimizer.step()
    assert bool((weight[gone] != 0).any())
    network, modules = sparse_net(density=1.0)
    topology = Topology(modules, OPTIMIZERS[kind](network.parameters()), seed=0)
    topology.start(Magnitude())
    x, y = examples()
    for step in range(6):
        train_step(network, modules, topology, x, y)
        if step == 2:
            topology.prune(topology.score(Magnitude(), step), 0.2)
        for name, module in modules.items():
            saved = network.state_dict()[f"{name}.inner.parametrizations.weight.original"]
            assert int((saved != 0).sum()) == module.nnz
    assert topology.nnz == math.floor(0.2 * topology.n_sites + 0.5)
