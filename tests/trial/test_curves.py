"""The curves of a trial against what plain numpy says of the same trial."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from sparsefleet.nn.masked import MaskedLinear, MaskedModule
from sparsefleet.trial import files, topology_curves, training as training_module
from sparsefleet.trial.masks import load_masks, read_step
from sparsefleet.trial.record import State
from sparsefleet.trial.run import run_trial

CSR = {"name": "csr"}


def rewired(name, params=None, **more):
    return {"layer": CSR, "density": 0.1, "method": {"rewirer": {"name": name, "params": params or {}}}, **more}


def masks_of(training):
    return {name: set(module.flat_sites().tolist()) for name, module in training.network.sparse.items()}


@pytest.fixture
def seen(monkeypatch):
    """The masks at the start and after every update, as (step, masks)."""
    found = []
    begin, tell = topology_curves.begin, topology_curves.tell_update

    def begun(training, *, fresh):
        begin(training, fresh=fresh)
        found.append((training.step, masks_of(training)))

    def told(training, changes):
        tell(training, changes)
        found.append((training.step, masks_of(training)))

    monkeypatch.setattr(training_module, "begin", begun)
    monkeypatch.setattr(training_module, "tell_update", told)
    return found


@pytest.mark.parametrize("method", [("set", {"every": 9}), ("rigl", {"every": 9}), ("deep-r", {})])
def test_distances_and_the_explored_share_are_those_of_the_masks(digits_request, seen, method):
    record = run_trial(digits_request(**rewired(*method), optimizer={"kind": "sgd", "lr": 0.5}))
    assert record.state is State.SUCCEEDED, record.reason
    n_sites = record.counts.total_weights_prunable
    by_step = {step: sum(len(before[name] ^ now[name]) for name in now) for (_, before), (step, now) in itertools.pairwise(seen)}
    together = {step: sum(len(before[name] | now[name]) for name in now) for (_, before), (step, now) in itertools.pairwise(seen)}
    hamming, jaccard = record.curves["mask_hamming"], record.curves["mask_jaccard"]
    assert hamming.values == [by_step[step] / n_sites for step in hamming.steps]
    assert jaccard.values == [by_step[step] / together[step] for step in jaccard.steps]
    assert max(hamming.values) > 0
    ever = {name: set() for name in seen[0][1]}
    explored = {}
    for step, masks in seen:
        for name, mask in masks.items():
            ever[name] |= mask
        explored[step] = sum(map(len, ever.values())) / n_sites
    curve = record.curves["explored_fraction"]
    told = {step: max(at for at in explored if at <= step) for step in curve.steps}
    assert curve.values == [explored[told[step]] for step in curve.steps]
    assert curve.values[-1] > curve.values[0] == pytest.approx(0.1, abs=1e-3)
    assert curve.steps[-1] == record.accuracy.steps


def test_the_topology_at_the_end_is_that_of_the_mask_artifact(digits_request):
    request = digits_request(**rewired("set", {"every": 9}, density=0.03))
    record = run_trial(request)
    masks = {}
    for name, mask in load_masks(request.workdir).items():
        dense = np.zeros(math.prod(mask.shape), dtype=bool)
        dense[mask.flat.numpy()] = True
        masks[name] = dense.reshape(mask.shape)
    matrices = list(masks.values())
    dead = sum(int((~a.any(1) | ~b.any(0)).sum()) for a, b in itertools.pairwise(matrices)) + int((~matrices[-1].any(1)).sum())
    last = {name: curve.values[-1] for name, curve in record.curves.items()}
    assert last["dead_units"] == dead > 0
    assert last["unused_inputs"] == int((~matrices[0].any(0)).sum())
    assert last["nnz"] == last["nnz_asked"] == record.counts.nnz_weights
    assert last["nnz_effective"] == sum(layer.nnz_effective for layer in record.counts.layers) < last["nnz"]
    for name, mask in masks.items():
        assert last[f"density/{name}"] == mask.mean()


def test_what_was_asked_of_a_pruner_follows_its_schedule(digits_request):
    method = {"pruner": {"name": "magnitude"}, "schedule": {"kind": "linear", "begin": 0.2, "end": 0.8, "every": 2}}
    record = run_trial(digits_request(layer=CSR, density=0.2, method=method, train={"epochs": 4, "batch_size": 64}))
    asked, nnz = record.curves["nnz_asked"], record.curves["nnz"]
    assert asked.steps == nnz.steps
    assert asked.values[0] == record.counts.total_weights_prunable
    assert asked.values[-1] == nnz.values[-1] == record.counts.nnz_weights
    assert sorted(asked.values, reverse=True) == asked.values
    assert all(abs(a - b) <= 1 for a, b in zip(asked.values, nnz.values, strict=True))


def test_gradient_flow_is_the_norm_of_the_gradient_by_the_live_weights(digits_request, monkeypatch):
    """Two layers with ReLU between and cross-entropy behind: the gradient by hand, in numpy float64."""
    kept, original = {}, training_module.Training.loss

    def loss(self, x, y):
        weights = {k: v.detach().double().numpy().copy() for k, v in self.network.module.state_dict().items() if v.is_floating_point()}
        sites = {name: module.flat_sites().numpy().copy() for name, module in self.network.sparse.items()}
        kept[self.step + 1] = (x.double().numpy().reshape(len(x), -1), y.numpy(), weights, sites)
        return original(self, x, y)

    monkeypatch.setattr(training_module.Training, "loss", loss)
    spec = rewired(
        "set", {"every": 9}, model={"name": "mlp", "params": {"hidden": [32]}}, train={"epochs": 2, "batch_size": 64, "precision": "fp64"}
    )
    record = run_trial(digits_request(**spec))
    assert record.state is State.SUCCEEDED, record.reason
    curves = record.curves
    assert len(curves["gradient_flow"].steps) == 2
    for i, step in enumerate(curves["gradient_flow"].steps):
        x, y, weights, sites = kept[step]
        w1, w2 = np.zeros(32 * 64), np.zeros(10 * 32)
        w1[sites["fc1"]], w2[sites["fc2"]] = weights["fc1.values_"].reshape(-1), weights["fc2.values_"].reshape(-1)
        w1, w2 = w1.reshape(32, 64), w2.reshape(10, 32)
        before = x @ w1.T + weights["fc1.bias"]
        hidden = np.maximum(before, 0)
        out = hidden @ w2.T + weights["fc2.bias"]
        p = np.exp(out - out.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(len(y)), y] -= 1
        p /= len(y)
        g2, g1 = p.T @ hidden, ((p @ w2) * (before > 0)).T @ x
        live = [np.linalg.norm(g.reshape(-1)[sites[name]]) for name, g in (("fc1", g1), ("fc2", g2))]
        assert curves["gradient_flow/fc1"].values[i] == pytest.approx(live[0], rel=1e-9)
        assert curves["gradient_flow/fc2"].values[i] == pytest.approx(live[1], rel=1e-9)
        assert curves["gradient_flow"].values[i] == pytest.approx(math.hypot(*live), rel=1e-9)


def test_preserved_magnitude_by_hand():
    """|w| of 1, 2, 3, 4: keeping the two largest keeps 7/10; two at random keep half of it on average, so 1.4 times as much as chance."""
    from sparsefleet.trial.log import Log
    from sparsefleet.trial.magnitude_curves import magnitudes, tell_preserved

    layer = SimpleNamespace(values=lambda: torch.tensor([1.0, -2.0, 3.0, -4.0]), nnz=4)
    other = SimpleNamespace(values=lambda: torch.tensor([5.0, 5.0]), nnz=2)
    training = SimpleNamespace(
        pruner=SimpleNamespace(revives=False), network=SimpleNamespace(sparse={"a": layer, "b": other}), log=Log(), step=7
    )
    before = magnitudes(training)
    assert before == {"a": (10.0, 4), "b": (10.0, 2)}
    layer.values, layer.nnz = (lambda: torch.tensor([3.0, -4.0])), 2
    tell_preserved(training, before)
    assert training.log.curves["preserved_magnitude"].values == [17 / 20]
    assert training.log.curves["preserved_magnitude_vs_random"].values == [pytest.approx(17 / 15)]


def test_random_pruning_preserves_what_chance_preserves_and_magnitude_more(digits_request):
    ratios = {}
    for name in ("random", "magnitude"):
        method = {"pruner": {"name": name}, "schedule": {"kind": "one-shot", "at": 0.5}}
        record = run_trial(digits_request(name, layer=CSR, density=0.3, method=method))
        ratios[name] = record.curves["preserved_magnitude_vs_random"].values[0]
    assert ratios["random"] == pytest.approx(1.0, abs=0.1)
    assert ratios["magnitude"] > 1.5


def test_a_method_that_acts_at_every_step_leaves_few_points(digits_request):
    spec = rewired("deep-r", optimizer={"kind": "sgd", "lr": 0.5}, train={"epochs": 60, "batch_size": 256})
    record = run_trial(digits_request(**spec))
    assert record.accuracy.steps > 300
    assert max(len(curve.steps) for curve in record.curves.values()) <= 400
    assert 3 <= len(record.curves["nnz_effective"].steps) <= 14


def test_channels_without_connections_are_counted_with_kernels_and_groups():
    """A convolution in two groups, 4 inputs, 4 outputs, 3 x 3: output 1 has nothing, and only inputs 0 and 3 are read."""
    conv = nn.Conv2d(4, 4, 3, groups=2)
    mask = torch.zeros(4, 2, 3, 3, dtype=torch.bool)
    mask[0, 0, 1, 1] = mask[2, 1, 0, 0] = mask[3, 1, 2, 2] = True
    module = MaskedModule.__new__(MaskedLinear)
    MaskedModule.__init__(module, conv, mask)
    assert topology_curves._untouched(module) == (1, 2)


def test_a_deep_net_has_curves_of_64_layers_from_the_first_to_the_last():
    names = [f"l{i}" for i in range(200)]
    shown = topology_curves.of_layers(names)
    assert len(shown) == len(set(shown)) == 64
    assert (shown[0], shown[-1]) == ("l0", "l199")
    assert topology_curves.of_layers(names[:10]) == names[:10]


def test_the_connections_are_kept_at_twelve_steps_at_most(digits_request):
    request = digits_request(**rewired("set", {"every": 5}, train={"epochs": 25, "batch_size": 256}))
    record = run_trial(request)
    paths = list((request.workdir / files.MASK_STEPS).glob("*.safetensors"))
    steps = dict(read_step(path) for path in paths)
    assert len(steps) <= 12
    assert {0, record.accuracy.steps} <= set(steps)
    final = load_masks(request.workdir)
    assert all(torch.equal(steps[record.accuracy.steps][name].flat, mask.flat) for name, mask in final.items())
    assert sum(path.stat().st_size for path in paths) < 12 << 20


def test_the_zeros_of_the_trained_net_are_a_fact_and_curves(digits_request):
    record = run_trial(digits_request(**rewired("static"), activation={"name": "k-winners"}))
    fact = next(fact for fact in record.facts if fact.what == "activations")
    assert fact.values["multiply_adds_saved"] == record.curves["multiply_adds_saved"].values[-1] > 0
