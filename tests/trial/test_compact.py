"""A trial that removes whole units and ends with a really smaller network: its record, files, resumption and what is refused."""

import json

import pytest
import torch
from torch import nn
from two_parts import assert_same_network, in_two_parts

from sparsefleet.errors import IntegrityError
from sparsefleet.registry import Registry
from sparsefleet.trial import files
from sparsefleet.trial.build import load_network
from sparsefleet.trial.masks import load_masks
from sparsefleet.trial.objective import evaluate
from sparsefleet.trial.record import State
from sparsefleet.trial.run import run_trial
from sparsefleet.trial.spec import Method, Neuron, PluginRef

N_DENSE = 64 * 32 + 32 * 24 + 24 * 10
CUBIC = {"kind": "cubic", "every": 4, "end": 0.5}


def compact(density=0.3, layer="compact", norm="batch", pattern=None, pruner="magnitude", **more):
    method = {"pruner": {"name": pruner}, "schedule": CUBIC, "pattern": {"kind": "neuron", **(pattern or {})}, "convert_at": 0.7, **more}
    model = {"name": "mlp", "params": {"hidden": [32, 24], "norm": norm}}
    return {"model": model, "layer": {"name": layer}, "density": density, "method": method}


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_the_record_counts_what_torch_counts_and_the_loaded_network_scores_the_same(digits_request, norm):
    request = digits_request(**compact(norm=norm))
    record = run_trial(request)
    assert record.state is State.SUCCEEDED, record.reason
    network = load_network(request.spec, request.workdir / files.MODEL, request.workdir)
    assert {type(module) for module in network.module.modules()} <= {
        nn.Sequential,
        nn.Flatten,
        nn.Linear,
        nn.ReLU,
        nn.BatchNorm1d,
        nn.LayerNorm,
    }
    assert record.counts.params == sum(p.numel() for p in network.module.parameters())
    assert record.counts.nnz_weights == sum(module.weight.numel() for module in network.module.modules() if isinstance(module, nn.Linear))
    assert (
        record.counts.nnz_weights
        == sum(layer.nnz for layer in record.counts.layers)
        == sum(layer.nnz_asked for layer in record.counts.layers)
    )
    assert record.counts.density_asked == 0.3
    assert record.counts.density_realised == record.counts.nnz_weights / N_DENSE == pytest.approx(0.3, abs=0.02)
    assert {layer.execution for layer in record.counts.layers} == {"compact_dense"}
    fact = next(fact for fact in record.facts if fact.what == "converted to compact")
    assert fact.step == 29 and fact.values["max_rel_output_error"] < 1e-4
    test = Registry().build("dataset", PluginRef(name="digits")).load(request.data_root, "test")
    assert evaluate(network.module, test, Registry().build("dataset", PluginRef(name="digits")).info).metric == record.accuracy.test


def test_the_mask_artifact_has_the_shapes_of_the_whole_network(digits_request):
    request = digits_request(**compact())
    run_trial(request)
    masks = load_masks(request.workdir)
    assert {name: mask.shape for name, mask in masks.items()} == {"fc1": (32, 64), "fc2": (24, 32), "fc3": (10, 24)}
    network = load_network(request.spec, request.workdir / files.MODEL, request.workdir)
    one, two = (torch.zeros(masks[name].shape, dtype=torch.bool).view(-1).index_fill_(0, masks[name].flat, True) for name in ("fc1", "fc2"))
    one, two = one.view(32, 64), two.view(24, 32)
    assert one.any(1).sum() == network.module.fc1.out_features == network.module.norm1.num_features == network.module.fc2.in_features
    assert torch.equal(one.any(1), two.any(0))


def test_compact_masked_and_csr_trials_are_the_same_training(digits_request):
    train = {"epochs": 2, "batch_size": 64, "precision": "fp64"}
    records = {}
    for norm in ("batch", "layer"):
        for layer in ("compact", "masked", "csr"):
            request = digits_request(f"{norm}-{layer}", **{**compact(layer=layer, norm=norm), "train": train})
            records[layer] = run_trial(request)
            assert records[layer].state is State.SUCCEEDED, records[layer].reason
            if layer != "compact":
                network = load_network(request.spec, request.workdir / files.MODEL, request.workdir)
                test = Registry().build("dataset", PluginRef(name="digits")).load(request.data_root, "test")
                test = type(test)(test.x.double(), test.y)
                score = evaluate(network.module, test, Registry().build("dataset", PluginRef(name="digits")).info)
                assert score.metric == records[layer].accuracy.test
        losses = [record.curves["train_loss"].values for record in records.values()]
        assert torch.allclose(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-9)
        assert torch.allclose(torch.tensor(losses[0]), torch.tensor(losses[2]), rtol=1e-9)
        assert len({record.accuracy.test for record in records.values()}) == 1
        assert len({record.counts.params for record in records.values()}) == 1


def test_density_of_units_leaves_about_its_square_of_the_inner_weights(digits_request):
    record = run_trial(digits_request(**compact(0.5, pattern={"counts": "units"})))
    assert record.counts.density_asked == 0.5
    assert [layer.nnz for layer in record.counts.layers] == [16 * 64, 12 * 16, 10 * 12]
    assert record.counts.layers[1].nnz / (24 * 32) == 0.25
    assert record.counts.density_realised == (16 * 64 + 12 * 16 + 10 * 12) / N_DENSE


def test_a_density_that_whole_units_cannot_have_is_told(digits_request):
    record = run_trial(digits_request(**compact(0.02)))
    assert record.state is State.SUCCEEDED
    assert any("density 0.02 of the weights was asked" in warning and "0.02454" in warning for warning in record.warnings)
    assert record.counts.density_realised == (64 + 1 + 10) / N_DENSE


def test_a_layer_that_is_kept_dense_keeps_its_outputs_and_loses_columns(digits_request):
    request = digits_request(**compact(keep_dense=["first", "last"]))
    record = run_trial(request)
    assert record.state is State.SUCCEEDED, record.reason
    network = load_network(request.spec, request.workdir / files.MODEL, request.workdir)
    assert network.module.fc1.weight.shape == (32, 64)
    assert network.module.fc3.in_features == network.module.fc2.out_features < 24
    assert record.counts.params == sum(p.numel() for p in network.module.parameters())


@pytest.mark.parametrize("optimizer", [{"kind": "sgd", "lr": 0.1, "momentum": 0.9}, {"kind": "adamw", "lr": 0.003}])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_a_resumed_trial_is_bit_equal_before_between_and_after_prunings(digits_request, monkeypatch, norm, optimizer):
    spec = {**compact(norm=norm), "optimizer": optimizer}
    whole = digits_request("whole", **spec)
    run_trial(whole)
    for stop_at in (3, 14, 29, 36):  # 29: right after the conversion
        parts = digits_request(f"parts-{stop_at}", checkpoint_every_s=1e-9, **spec)
        in_two_parts(monkeypatch, parts, stop_at)
        assert_same_network(parts, whole)
        a, b = (json.loads((r.workdir / files.RECORD).read_text()) for r in (parts, whole))
        assert (a["curves"], a["accuracy"], a["counts"]) == (b["curves"], b["accuracy"], b["counts"])


def test_k_winners_mix_units_and_end_the_trial_before_it_trains(digits_request):
    record = run_trial(digits_request(**{**compact(), "activation": {"name": "k-winners"}}))
    assert record.state is State.PLUGIN_ERROR
    assert "pattern neuron" in record.reason
    assert record.accuracy is None or record.accuracy.steps == 0


def test_other_units_than_the_masks_say_do_not_load(digits_request):
    request, other = digits_request("a", **compact(0.3)), digits_request("b", **compact(0.6))
    run_trial(request), run_trial(other)
    with pytest.raises(IntegrityError):
        load_network(request.spec, request.workdir / files.MODEL, other.workdir)


def test_a_level_of_a_lottery_takes_no_units():
    with pytest.raises(ValueError, match="a lottery takes single weights back"):
        Method(pruner=PluginRef(name="magnitude"), pattern=Neuron(), rewind={})


def test_new_weights_in_the_same_units_train_the_small_network_from_the_start(digits_request):
    from sparsefleet.measure.correctness import Correctness
    from sparsefleet.measure.whole import check_compact

    first = digits_request("first", **compact(norm="layer"))
    run_trial(first)
    arm = {**compact(norm="layer"), "method": {"rewirer": {"name": "static"}}, "init": {"draw": 1}}
    request = digits_request("arm", start=first.workdir, gives="mask", **arm)
    record = run_trial(request)
    assert record.state is State.SUCCEEDED, record.reason
    assert (request.workdir / files.MASKS).read_bytes() == (first.workdir / files.MASKS).read_bytes()
    network = load_network(request.spec, request.workdir / files.MODEL, request.workdir)
    assert record.counts.params == sum(p.numel() for p in network.module.parameters())
    found = Correctness(backward=True)
    check_compact(found, network, [torch.randn(8, 1, 8, 8)], request.spec, Registry(), "key")
    assert found.ok, found.reason


def test_a_compact_file_is_as_much_smaller_as_its_parameters_are_fewer(digits_request):
    record = run_trial(digits_request(**compact(0.1, norm="none")))
    assert record.counts.stored_bytes == 4 * record.counts.params
    assert record.counts.compression == pytest.approx(record.counts.total_params_model / record.counts.params)


def test_er_is_no_distribution_of_units(digits_request):
    with pytest.raises(ValueError, match="use uniform or global"):
        digits_request(**compact(distribution="er"))
