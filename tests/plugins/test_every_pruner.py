"""What every first-party pruner must hold, whatever it scores by; a new one is found through its entry point."""

import hashlib
import math
import os
import subprocess
import sys

import pytest
import torch
from small_net import INFO, examples, masks, sparse_net, train_step
from sparsefleet_plugins.layers.masked import Masked
from torch import nn
from two_parts import assert_same_network, in_two_parts

from sparsefleet import Connections, PluginError, Rng
from sparsefleet.nn.topology import Topology
from sparsefleet.registry import Registry, catalog
from sparsefleet.sparsity.vocabulary import Block, Channel, NOfM, Row
from sparsefleet.trial.calibrate import NetworkCalibration
from sparsefleet.trial.masks import load_masks
from sparsefleet.trial.record import State
from sparsefleet.trial.run import run_trial

NAMES = sorted(entry.name for entry in catalog().entries if entry.family == "pruner" and entry.distribution == "sparsefleet")
PLUGINS = {name: Registry(catalog()).plugin_class("pruner", name)() for name in NAMES}
every_pruner = pytest.mark.parametrize("name", NAMES)


def scored(plugin, network, modules, examples_of=examples, step=1):
    """Scores of every layer as the trial takes them, and the topology."""
    topology = Topology(modules, torch.optim.SGD(network.parameters(), lr=0.1), seed=0)
    topology.start(plugin)
    x, y = examples_of()
    if plugin.revives:  # scores of sites come from training
        train_step(network, modules, topology, x, y)
    if plugin.needs_calibration:
        context = NetworkCalibration(network, modules, topology.connections("prune", step), [(x, y)], INFO)
        return topology, {name: score.detach() for name, score in plugin.score_all(context).items()}
    return topology, topology.score(plugin, step)


def prune(plugin, topology, scores, density, **how):
    for only in list(topology.modules) if plugin.sequential else [None]:
        topology.prune(scores, density, per_row=plugin.per_row, only=only, **how)


def conv_net():
    """Convolution, ReLU, Linear on 2 x 6 x 6 images, masked, in float64."""
    shapes = {"0": (nn.Conv2d(2, 4, 3, device="meta"), (4, 18)), "3": (nn.Linear(64, 4, device="meta"), (4, 64))}
    modules = {}
    for name, (template, (n_out, n_in)) in shapes.items():
        site = torch.arange(n_out * n_in)
        weight = Rng("conv", name).normal(site.numel()) / n_in**0.5
        conn = Connections(name, (n_out, n_in), site // n_in, site % n_in, weight)
        modules[name] = Masked().build(template, conn, torch.zeros(n_out, dtype=torch.float64))
        modules[name].layer_name, modules[name].kernel = name, 9 if name == "0" else 1
    network = nn.Sequential(modules["0"], nn.ReLU(), nn.Flatten(), modules["3"])
    return network, modules


def images():
    x = Rng("images").normal(24 * 72).view(24, 2, 6, 6)
    return x, torch.arange(24) % 4


# Counts

SCHEDULES = {"one-shot": {"kind": "one-shot", "at": 0.4}, "cubic": {"kind": "cubic", "every": 5, "end": 0.8}}


@pytest.mark.parametrize("distribution", ["uniform", "erk", "global"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@every_pruner
def test_a_trial_keeps_exactly_what_was_asked(digits_request, name, schedule, distribution):
    method = {"pruner": {"name": name}, "schedule": SCHEDULES[schedule], "distribution": distribution}
    train = {"epochs": 1, "batch_size": 64, "max_steps": 18}
    record = run_trial(
        digits_request(
            method=method, density=0.15, layer={"name": "masked"}, train=train, model={"name": "mlp", "params": {"hidden": [12]}}
        )
    )
    if PLUGINS[name].sequential and distribution == "global":
        assert record.state is State.PLUGIN_ERROR
        assert "one by one" in record.reason
        return
    assert record.state is State.SUCCEEDED, record.reason
    assert record.counts.nnz_weights == math.floor(0.15 * (64 * 12 + 12 * 10) + 0.5)
    told = [warning for warning in record.warnings if "is defined for distribution" in warning]
    assert len(told) == (PLUGINS[name].made_for not in ("", distribution))


@every_pruner
def test_regression(digits_request, name):
    method = {"pruner": {"name": name}, "schedule": {"kind": "one-shot", "at": 0.5}}
    train, data = {"epochs": 4, "batch_size": 16}, {"name": "random-regression"}
    record = run_trial(digits_request(method=method, density=0.2, layer={"name": "masked"}, dataset=data, train=train, validation=0.0))
    if PLUGINS[name].balanced_calibration:
        assert record.state is State.PLUGIN_ERROR
        assert "by class" in record.reason
        return
    assert record.state is State.SUCCEEDED, record.reason
    assert record.counts.nnz_weights == math.floor(0.2 * (200 * 32 + 32 * 24 + 24 * 10) + 0.5)


@pytest.mark.parametrize("density", [1.0, 0.5, 3 / 122])
@every_pruner
def test_layers_with_everything_and_with_one_connection(name, density):
    network, modules = sparse_net(density=1.0)
    topology, scores = scored(PLUGINS[name], network, modules)
    before = {key: mask.copy() for key, mask in masks(modules).items()}
    prune(PLUGINS[name], topology, scores, density)
    assert topology.nnz == round(density * topology.n_sites)
    if density == 1.0:
        assert all((masks(modules)[key] == before[key]).all() for key in before)
    if density == 3 / 122:
        assert [module.nnz for module in modules.values()] == [1, 1, 1]
        topology, scores = scored(PLUGINS[name], network, modules)  # a layer of one connection can be scored again
        prune(PLUGINS[name], topology, scores, density)
        assert [module.nnz for module in modules.values()] == [1, 1, 1]


@every_pruner
def test_what_is_pruned_stays_pruned_unless_the_method_revives(name):
    plugin, (network, modules) = PLUGINS[name], sparse_net(density=1.0)
    came_back = 0
    for step, density in enumerate((0.6, 0.4, 0.2), 1):
        before = masks(modules)
        topology, scores = scored(plugin, network, modules, step=step)
        prune(plugin, topology, scores, density)
        came_back += sum(int((mask & ~before[key]).sum()) for key, mask in masks(modules).items())
        assert topology.nnz == round(density * topology.n_sites)
    assert came_back == 0 or plugin.revives


# Ties, order, NaN


@pytest.mark.parametrize("density", [0.5, 0.1])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "random"])
def test_ties_are_broken_by_position(name, density):
    """A network of zeros has the same score everywhere."""
    plugin, (network, modules) = PLUGINS[name], sparse_net(density=1.0)
    for module in modules.values():
        module.write_values(torch.zeros(module.nnz, dtype=torch.float64))
    topology, scores = scored(plugin, network, modules)
    prune(plugin, topology, scores, density)
    assert topology.nnz == round(density * topology.n_sites)
    for module in modules.values():
        n_out, n_in = module.matrix_shape
        if plugin.per_row:
            for i, row in enumerate(module.mask):
                n_keep = module.nnz // n_out + (i < module.nnz % n_out)
                assert row.tolist() == [True] * n_keep + [False] * (n_in - n_keep)
        else:
            assert module.flat_sites().tolist() == list(range(module.nnz))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "random"])
def test_scores_move_with_their_connection_when_units_are_renumbered(name):
    plugin = PLUGINS[name]
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])  # of the first hidden layer
    scores = {}
    for renumbered in (False, True):
        network, modules = sparse_net(density=1.0)
        if renumbered:
            first, second = modules["0"], modules["2"]
            first.write_values(first.values().view(7, 8)[order].reshape(-1))
            first.bias.data = first.bias.data[order]
            second.write_values(second.values().view(6, 7)[:, order].reshape(-1))
        scores[renumbered] = {key: value.reshape(modules[key].matrix_shape) for key, value in scored(plugin, network, modules)[1].items()}
    for key, moved in (("0", lambda s: s[order]), ("2", lambda s: s[:, order]), ("4", lambda s: s)):
        torch.testing.assert_close(scores[True][key], moved(scores[False][key]), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("pattern", [None, Row(), Channel(), Block(rows=2, cols=2), Block(rows=2, cols=2, score="max"), NOfM(n=2, m=4)])
@every_pruner
def test_nan_ends_the_pruning_and_keeps_nothing_silently(name, pattern):
    plugin, (network, modules) = PLUGINS[name], sparse_net(density=1.0)
    topology, scores = scored(plugin, network, modules)
    before = {key: mask.copy() for key, mask in masks(modules).items()}
    scores["0"].view(-1)[5] = torch.nan
    with pytest.raises(PluginError, match="NaN"):
        prune(plugin, topology, scores, 0.5, pattern=pattern)
    assert all((masks(modules)[key] == before[key]).all() for key in before)


# Layers and patterns


@pytest.mark.parametrize("density", [0.5, 0.1])
@every_pruner
def test_convolutions_and_linears(name, density):
    network, modules = conv_net()
    topology, scores = scored(PLUGINS[name], network, modules, images)
    for key, score in scores.items():
        assert score.numel() == modules[key].mask.numel()
        assert bool(score.isfinite().all())
    prune(PLUGINS[name], topology, scores, density)
    assert topology.nnz == math.floor(density * topology.n_sites + 0.5)
    for module in modules.values():
        assert bool((module.weight[~module.mask] == 0).all())


@every_pruner
def test_every_pattern(name):
    """Whole rows, input channels and tiles; of every four consecutive input channels two, at each kernel element."""
    plugin = PLUGINS[name]

    def pruned(pattern):
        network, modules = conv_net()
        topology, scores = scored(plugin, network, modules, images)
        prune(plugin, topology, scores, 0.5, pattern=pattern)
        return modules["0"].mask, modules["3"].mask

    conv, linear = pruned(Row())
    assert conv.flatten(1).all(1).tolist().count(True) == 2 == conv.flatten(1).any(1).tolist().count(True)
    assert linear.all(1).tolist().count(True) == 2 == linear.any(1).tolist().count(True)
    conv, linear = pruned(Channel())
    whole = conv.transpose(0, 1).flatten(1)
    assert whole.all(1).tolist().count(True) == 1 == whole.any(1).tolist().count(True)
    assert linear.all(0).tolist().count(True) == 32 == linear.any(0).tolist().count(True)
    for mask in pruned(Block(rows=2, cols=2)):
        tiles = mask.flatten(1).unfold(0, 2, 2).unfold(1, 2, 2).flatten(2)
        assert bool((tiles.all(2) == tiles.any(2)).all())
        assert int(mask.sum()) == mask.numel() // 2
    conv, linear = pruned(NOfM(n=2, m=4))
    assert bool((linear.view(4, 16, 4).sum(2) == 2).all())
    assert int(conv.sum()) == conv.numel()  # of two input channels both stay
    conv, _ = pruned(NOfM(n=1, m=2))
    assert bool((conv.sum(1) == 1).all())  # at every kernel element one of the two channels


# Across processes, at size, and through an interruption

_DIGESTS = """
import hashlib, sys
sys.path.insert(0, {here!r}); sys.path.insert(0, {contract!r})
from test_every_pruner import NAMES, digest_of
print(",".join(digest_of(name) for name in NAMES))
"""


def digest_of(name):
    """The scores and the masks that the pruner gives a small network."""
    network, modules = sparse_net(density=1.0)
    topology, scores = scored(PLUGINS[name], network, modules)
    prune(PLUGINS[name], topology, scores, 0.3)
    parts = [score.numpy().tobytes() for score in scores.values()] + [mask.tobytes() for mask in masks(modules).values()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_every_process_prunes_alike():
    """google-research/rigl seeded with Python's hash(), which changes with PYTHONHASHSEED."""
    here = os.path.dirname(__file__)
    code = _DIGESTS.format(here=here, contract=os.path.join(here, "..", "contract"))
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert outputs == {",".join(digest_of(name) for name in NAMES)}


@pytest.mark.slow
@every_pruner
def test_more_than_2_to_the_24_connections(name):
    """torch.quantile and torch.multinomial refuse this many."""
    plugin, n_out, n_in = PLUGINS[name], 4096, 4097
    site = torch.arange(n_out * n_in)
    assert site.numel() > 2**24
    weight = Rng("big").at(site).float() - 0.5
    conn = Connections("0", (n_out, n_in), site // n_in, site % n_in, weight)
    module = Masked().build(nn.Linear(n_in, n_out, bias=False, device="meta"), conn, None)
    module.layer_name = "0"
    network = nn.Sequential(module, nn.Linear(n_out, 4, bias=False))
    del conn, weight, site

    def two():
        return Rng("x").normal(2 * n_in).float().view(2, n_in), torch.tensor([0, 3])

    topology, scores = scored(plugin, network, {"0": module}, two)
    prune(plugin, topology, scores, 0.37, distribution="uniform" if plugin.sequential else "global")
    assert module.nnz == math.floor(0.37 * n_out * n_in + 0.5)


@every_pruner
def test_a_resumed_trial_is_bit_equal_to_an_uninterrupted_one(digits_request, monkeypatch, name):
    spec = {
        "method": {"pruner": {"name": name}, "schedule": {"kind": "cubic", "begin": 0.1, "end": 0.8, "every": 5}},
        "density": 0.2,
        "layer": {"name": "masked"},
        "train": {"epochs": 1, "batch_size": 64},
        "model": {"name": "mlp", "params": {"hidden": [16]}},
    }
    whole = digits_request("whole", **spec)
    assert run_trial(whole).state is State.SUCCEEDED
    for stop_at in (1, 9):
        parts = digits_request(f"parts-{stop_at}", checkpoint_every_s=1e-9, **spec)
        assert in_two_parts(monkeypatch, parts, stop_at).state is State.SUCCEEDED
        assert_same_network(parts, whole)
    assert {key: mask.flat.numel() for key, mask in load_masks(whole.workdir).items()} == {"fc1": 205, "fc2": 32}


def test_criteria_that_rank_all_layers_together_say_so():
    """LAMP on one layer at a time is magnitude pruning, and SNIP is not the paper's."""
    assert {name for name in NAMES if PLUGINS[name].made_for == "global"} == {"lamp", "snip", "grasp", "synflow"}


def test_there_are_pruners():
    assert {"magnitude", "random", "lamp", "snip", "grasp", "synflow", "taylor", "movement", "wanda"} <= set(NAMES)
