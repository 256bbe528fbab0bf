"""One trial, end to end, in one process."""

import json
import math

import pytest
import torch
from two_parts import assert_same_network, in_two_parts

from sparsefleet.trial import files
from sparsefleet.trial.build import load_network
from sparsefleet.trial.masks import load_masks
from sparsefleet.trial.objective import evaluate
from sparsefleet.trial.record import Record, State
from sparsefleet.trial.run import run_trial

CSR = {"name": "csr"}
MASKED = {"name": "masked"}


def rewired(name, params=None, layer=CSR, density=0.2, **more):
    method = {"rewirer": {"name": name, "params": params or {}}, **more}
    return {"layer": layer, "density": density, "method": method}


def pruned(schedule, layer=CSR, density=0.2, **more):
    return {"layer": layer, "density": density, "method": {"pruner": {"name": "magnitude"}, "schedule": schedule, **more}}


def test_a_dense_trial_leaves_a_strict_record_and_its_files(digits_request):
    request = digits_request(train={"epochs": 10, "batch_size": 64})
    record = run_trial(request)
    assert record.state is State.SUCCEEDED, record.reason
    assert record.accuracy.test > 0.9
    assert record.accuracy.test_evals == 1
    assert record.accuracy.n_test == 360
    stored = Record.model_validate_json((request.workdir / files.RECORD).read_text())
    assert stored == record
    assert (request.workdir / files.MODEL).exists()
    assert not (request.workdir / files.MASKS).exists()


CASES = {
    "static": rewired("static"),
    "set": rewired("set"),
    "rigl": rewired("rigl", {"every": 5}, distribution="erk"),
    "deep-r": {**rewired("deep-r"), "optimizer": {"kind": "sgd", "lr": 0.1}},
    "magnitude": pruned({"kind": "cubic", "every": 4}),
    "magnitude-global": pruned({"kind": "linear", "every": 4}, distribution="global"),
    "masked": rewired("set", layer=MASKED),
}


@pytest.mark.parametrize("case", CASES)
def test_every_method_realises_its_density_exactly_and_reloads_to_the_same_accuracy(digits_request, case):
    request = digits_request(**CASES[case])
    record = run_trial(request)
    assert record.state is State.SUCCEEDED, record.reason
    total = 64 * 32 + 32 * 24 + 24 * 10
    assert record.counts.nnz_weights == math.floor(0.2 * total + 0.5)
    assert sum(layer.nnz for layer in record.counts.layers) == record.counts.nnz_weights
    masks = load_masks(request.workdir)
    assert {name: m.flat.numel() for name, m in masks.items()} == {layer.name: layer.nnz for layer in record.counts.layers}
    network = load_network(request.spec, request.workdir / files.MODEL, request.workdir)
    from sparsefleet.registry import Registry
    from sparsefleet.trial.spec import PluginRef

    test = Registry().build("dataset", PluginRef(name="digits")).load(request.data_root, "test")
    score = evaluate(network.module, test, Registry().plugin_class("dataset", "digits").info)
    assert score.metric == record.accuracy.test


def test_params_are_counted_as_torch_counts_them(digits_request):
    record = run_trial(digits_request(**rewired("static")))
    network = load_network(digits_request(**rewired("static")).spec, digits_request().workdir / files.MODEL, digits_request().workdir)
    assert record.counts.params == sum(p.numel() for p in network.module.parameters())


def test_conversion_keeps_outputs_and_is_noted(digits_request):
    record = run_trial(digits_request(**pruned({"kind": "cubic", "every": 4, "end": 0.5}, convert_at=0.6)))
    fact = next(f for f in record.facts if f.what == "converted to csr")
    assert fact.values["max_rel_output_error"] < 1e-5
    assert all(layer.execution == "sparse_csr" for layer in record.counts.layers)


@pytest.mark.parametrize("optimizer", [{"kind": "sgd", "lr": 0.1, "momentum": 0.9}, {"kind": "adam", "lr": 0.003}])
def test_training_after_the_conversion_goes_on_as_on_masked(digits_request, optimizer):
    """The slots follow: in float64 the converted run and the run that stays masked end with the same weights."""
    schedule = {"kind": "cubic", "every": 4, "end": 0.5}
    train = {"epochs": 2, "batch_size": 64, "precision": "fp64"}
    a = digits_request("a", train=train, optimizer=optimizer, **pruned(schedule, convert_at=0.55))
    b = digits_request("b", train=train, optimizer=optimizer, **pruned(schedule, layer=MASKED))
    assert run_trial(a).state is run_trial(b).state is State.SUCCEEDED
    csr, masked = (load_network(r.spec, r.workdir / files.MODEL, r.workdir).sparse for r in (a, b))
    for name in csr:
        assert torch.equal(csr[name].flat_sites(), masked[name].flat_sites())
        torch.testing.assert_close(csr[name].values(), masked[name].values(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("case", ["set", "rigl", "deep-r"])
def test_masked_and_csr_trials_have_identical_masks(digits_request, case):
    train = {"epochs": 2, "batch_size": 64, "precision": "fp64"}
    a = digits_request("a", **{**CASES[case], "train": train})
    b = digits_request("b", **{**CASES[case], "train": train, "layer": MASKED})
    assert run_trial(a).accuracy.test == run_trial(b).accuracy.test
    digest = [json.loads((r.workdir / files.MANIFEST).read_text())["digest"] for r in (a, b)]
    assert digest[0] == digest[1]


@pytest.mark.parametrize(
    ("case", "optimizer"),
    [(case, optimizer) for case in ("set", "rigl", "magnitude") for optimizer in ("sgd", "adam")] + [("deep-r", "sgd")],
)
def test_a_resumed_trial_is_bit_equal_to_an_uninterrupted_one(digits_request, monkeypatch, case, optimizer):
    spec = dict(CASES[case])
    if optimizer == "adam":
        spec["optimizer"] = {"kind": "adam", "lr": 0.003}
    spec["activation"] = {"name": "k-winners"}  # its duty cycle is part of the state
    if case == "magnitude":
        spec["method"] = {**spec["method"], "convert_at": 0.8}
    whole = digits_request("whole", **spec)
    run_trial(whole)
    for stop_at in (7, 31, 39):
        parts = digits_request(f"parts-{stop_at}", checkpoint_every_s=1e-9, **spec)
        in_two_parts(monkeypatch, parts, stop_at)
        assert_same_network(parts, whole)
        a, b = (json.loads((r.workdir / files.RECORD).read_text()) for r in (parts, whole))
        assert a["curves"] == b["curves"]
        assert a["accuracy"] == b["accuracy"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "side"])
def test_a_damaged_checkpoint_is_set_aside_never_used(digits_request, damage):
    clean = run_trial(digits_request("clean"))
    request = digits_request("dirty", checkpoint_every_s=1e-9)
    from sparsefleet.trial import checkpoint

    request.workdir.mkdir()
    checkpoint.save_checkpoint(request.workdir, {"net/x": torch.zeros(3)}, {"step": 5})
    path = request.workdir / (checkpoint.SIDE if damage == "side" else checkpoint.FILE)
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))
    record = run_trial(request)
    assert record.state is State.SUCCEEDED
    assert record.accuracy == clean.accuracy
    assert any("checkpoint set aside" in w for w in record.warnings)
    assert list(request.workdir.glob("*.damaged"))


def test_a_diverging_trial_is_recorded_with_its_step(digits_request):
    record = run_trial(digits_request(optimizer={"kind": "sgd", "lr": 1e30}))
    assert record.state is State.DIVERGED
    assert "at step" in record.reason
    assert record.accuracy.test is None
    assert record.accuracy.diverged
    assert record.accuracy.chance == 0.1


def test_a_raising_plugin_is_recorded_with_its_trace(digits_request, plugin_distribution):
    source = """
        from sparsefleet import Rewirer, hookimpl
        class Breaks(Rewirer):
            name = "rn-breaks"
            every: int = 3
            def drop_score(self, conn):
                raise KeyError("my own bug")
        @hookimpl
        def sparsefleet_rewirers():
            return [Breaks]
    """
    plugin_distribution("dist-breaks", {"rn_breaks": source})
    record = run_trial(digits_request(**rewired("rn-breaks")))
    assert record.state is State.PLUGIN_ERROR
    assert "my own bug" in record.reason
    assert "rn_breaks.py" in record.reason
    assert len(record.reason.splitlines()) <= 20


def test_no_test_image_is_left_out_and_selection_is_forbidden_without_validation(digits_request):
    record = run_trial(digits_request(validation=0.0))
    assert record.accuracy.n_test == 360
    assert record.accuracy.best_on_val is None
    assert "validation_top1" not in record.curves


def test_the_declared_epoch_is_tested_once(digits_request):
    first = run_trial(digits_request("one", train={"epochs": 1, "batch_size": 64}))
    declared = run_trial(digits_request("two", train={"epochs": 3, "batch_size": 64, "test_epoch": 1}))
    assert declared.accuracy.test == first.accuracy.test
    assert declared.accuracy.test_evals == 1
    assert declared.accuracy.epochs == 3


def test_small_dense_has_the_parameters_of_the_sparse_net_within_one_percent(digits_request):
    hidden = {"name": "mlp", "params": {"hidden": [512, 512]}}
    train = {"epochs": 0, "batch_size": 64}
    small = run_trial(digits_request("small", model=hidden, train=train, narrow_to_density=0.1))
    sparse = run_trial(digits_request("sparse", model=hidden, train=train, **rewired("static", density=0.1)))
    assert small.counts.params == pytest.approx(sparse.counts.params, rel=0.01)
    assert small.counts.density_realised == 1.0


def test_a_trial_starts_from_its_twins_weights(digits_request):
    twin = digits_request("twin")
    run_trial(twin)
    request = digits_request(
        "pruned",
        start=twin.workdir,
        train={"epochs": 0, "batch_size": 64},
        **pruned({"kind": "one-shot"}, density=0.5),
    )
    assert run_trial(request).state is State.SUCCEEDED
    from safetensors.torch import load_file

    dense = load_file(twin.workdir / files.MODEL)
    pruned_net = load_network(request.spec, request.workdir / files.MODEL, request.workdir)
    for name, module in pruned_net.sparse.items():
        weight = dense[f"{name}.weight"].reshape(-1)
        assert torch.equal(module.values(), weight[module.flat_sites()])
        assert module.values().abs().min() >= weight.abs().median()


@pytest.mark.parametrize("altered", [lambda w: w.t().contiguous(), lambda w: torch.cat([w, w]), lambda w: w[:1, :1].clone()])
def test_a_trial_does_not_start_from_weights_of_another_shape(digits_request, altered):
    """Of as many elements, of more, or of fewer than its sites ask for: none of them are the twin's weights."""
    from safetensors.torch import load_file, save_file

    twin = digits_request("twin", train={"epochs": 0, "batch_size": 64})
    run_trial(twin)
    weights = load_file(twin.workdir / files.MODEL)
    save_file({name: altered(value) if name == "fc1.weight" else value for name, value in weights.items()}, twin.workdir / files.MODEL)
    record = run_trial(digits_request("pruned", start=twin.workdir, **pruned({"kind": "one-shot"}, density=0.5)))
    assert record.state is State.PLUGIN_ERROR
    assert "model.safetensors: fc1.weight must have the shape (32, 64), got " in record.reason


def test_keep_dense_leaves_the_named_layers_alone(digits_request):
    record = run_trial(digits_request(**rewired("static", keep_dense=["last"])))
    assert [layer.name for layer in record.counts.layers] == ["fc1", "fc2"]
    unknown = run_trial(digits_request(**rewired("static", keep_dense=["fc9"])))
    assert unknown.state is State.PLUGIN_ERROR
    assert "valid: first, last, Linear, fc1" in unknown.reason


def test_zero_steps_is_a_trial_too(digits_request):
    record = run_trial(digits_request(train={"epochs": 0, "batch_size": 64}, **rewired("rigl")))
    assert record.state is State.SUCCEEDED
    assert record.accuracy.steps == 0


def test_other_data_than_the_keys_are_refused(digits_request):
    request = digits_request().model_copy(update={"data": {"digits": "0" * 64}})
    record = run_trial(request)
    assert record.state is State.PLUGIN_ERROR
    assert "is not the one that the trial was submitted with" in record.reason
    from sparsefleet.registry import catalog
    from sparsefleet.trial.identity import data_digest

    right = {"digits": data_digest(request.spec.dataset, catalog(), request.data_root)}
    assert run_trial(request.model_copy(update={"data": right})).state is State.SUCCEEDED
