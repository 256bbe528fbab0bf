"""A compact network is checked against the masked whole in float64, and one that lost the wrong unit is found out."""

import pytest
import torch

from sparsefleet.measure.correctness import Correctness
from sparsefleet.measure.whole import check_compact
from sparsefleet.nn.topology import Topology
from sparsefleet.nn.unit_pruning import prune_units
from sparsefleet.registry import Registry
from sparsefleet.trial.build import build_network, convert
from sparsefleet.trial.spec import Method, PluginRef, Sgd, Train, TrialSpec


def compact(norm, keep_dense=()):
    spec = TrialSpec(
        dataset=PluginRef(name="digits"),
        model=PluginRef(name="mlp", params={"hidden": [12, 9], "norm": norm}),
        layer=PluginRef(name="compact"),
        method=Method(pruner=PluginRef(name="magnitude"), pattern={"kind": "neuron"}, keep_dense=keep_dense),
        density=0.4,
        optimizer=Sgd(lr=0.1),
        train=Train(epochs=1),
    )
    network = build_network(spec)
    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    network.module(x)  # batch statistics
    scores = {name: module.values().abs() for name, module in network.sparse.items()}
    prune_units(network.module, Topology(network.sparse, None, 0), scores, 0.4, spec.method.pattern)
    error, _ = convert(network, spec, Registry(), x)
    assert error < 1e-5
    network.module.eval()
    return network, spec, x


def checked(network, spec, x, *, backward):
    found = Correctness(backward=backward)
    check_compact(found, network, [x], spec, Registry(), "key")
    return found


@pytest.mark.parametrize("keep_dense", [(), ("last",)])
@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_a_right_one_is_within_its_tolerance(norm, keep_dense):
    found = checked(*compact(norm, keep_dense), backward=True)
    assert found.ok, found.reason
    assert found.comparisons > 6
    assert found.dense_same_dtype_err > 0


def _write(tensor, values):
    tensor.copy_(values)


@pytest.mark.parametrize("key", ["fc2.weight", "fc1.bias", "norm1.running_var", "norm1.running_mean", "fc3.weight"])
def test_one_that_computes_with_another_units_entry_is_found_out(key):
    network, spec, x = compact("batch")
    assert checked(network, spec, x, backward=False).ok
    tensor = network.module.state_dict()[key]
    right, module = tensor.clone(), network.module.get_submodule(key.partition(".")[0])
    module.register_forward_pre_hook(lambda *_: _write(tensor, right.roll(1, -1)))
    module.register_forward_hook(lambda *_: _write(tensor, right))
    found = checked(network, spec, x, backward=False)
    assert not found.ok
    assert "the compact network against the masked one" in found.reason


def test_a_gradient_that_is_another_one_is_found_out():
    network, spec, x = compact("none")
    network.module.fc2.register_full_backward_pre_hook(lambda module, grads: (grads[0] * 2,))
    found = checked(network, spec, x, backward=True)
    assert "gradient by" in found.reason
