"""What could make a number wrong without anyone noticing: caching, resuming, calibrating, and ends that are not finite."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sparsefleet.trial import files
from sparsefleet.trial.record import Record, State
from sparsefleet.trial.run import run_trial

PLUGINS = """
    import torch
    from sparsefleet import Model, Pruner, hookimpl
    from torch import nn

    class Snip(Pruner):
        name = "rv-snip"
        needs_grad = True
        def score(self, conn):
            return (conn.grad * conn.weight).abs()

    class Rounds(Pruner):
        name = "rv-rounds"
        needs_calibration = True
        rounds = 5
        def score_all(self, calibration):
            return {name: conn.weight.abs() for name, conn in calibration.layers.items()}

    @hookimpl
    def sparsefleet_pruners():
        return [Snip, Rounds]
"""


@pytest.fixture
def pruners(plugin_distribution):
    plugin_distribution("dist-review", {"rv_pruners": PLUGINS})


def pruned(name, schedule, **more):
    return {"layer": {"name": "masked"}, "density": 0.2, "method": {"pruner": {"name": name}, "schedule": schedule, **more}}


class _Interrupt(BaseException):
    pass


def interrupted(request, stop_at, monkeypatch):
    from sparsefleet.trial import training

    original = training.Training._train_step

    def step(self, x, y):
        if self.step == stop_at:
            raise _Interrupt
        original(self, x, y)

    monkeypatch.setattr(training.Training, "_train_step", step)
    with pytest.raises(_Interrupt):
        run_trial(request)
    monkeypatch.setattr(training.Training, "_train_step", original)


@pytest.mark.parametrize(("pruner", "stop_at"), [("rv-snip", 8), ("magnitude", 32), ("rv-rounds", 32)])
def test_a_trial_resumed_right_after_a_pruning_is_bit_equal(digits_request, pruners, monkeypatch, pruner, stop_at):
    spec = pruned(pruner, {"kind": "cubic", "every": 4})
    spec["model"] = {"name": "mlp", "params": {"hidden": [32, 24], "norm": "batch"}}
    spec["activation"] = {"name": "k-winners"}
    whole, parts = digits_request("whole", **spec), digits_request("parts", checkpoint_every_s=1e-9, **spec)
    assert run_trial(whole).state is State.SUCCEEDED
    interrupted(parts, stop_at, monkeypatch)
    run_trial(parts)
    assert (parts.workdir / files.MODEL).read_bytes() == (whole.workdir / files.MODEL).read_bytes()
    a, b = (json.loads((r.workdir / files.RECORD).read_text()) for r in (parts, whole))
    assert a["curves"] == b["curves"]
    assert a["accuracy"] == b["accuracy"]


def test_scoring_by_gradient_leaves_buffers_and_gradients_alone(digits_request, pruners):
    request = digits_request(
        model={"name": "mlp", "params": {"hidden": [32, 24], "norm": "batch"}},
        activation={"name": "k-winners"},
        train={"epochs": 0, "batch_size": 64},
        **pruned("rv-snip", {"kind": "one-shot"}),
    )
    assert run_trial(request).state is State.SUCCEEDED
    from safetensors.torch import load_file

    state = load_file(request.workdir / files.MODEL)
    assert int(state["norm1.num_batches_tracked"]) == 0
    assert not state["norm1.running_mean"].any()
    assert int(state["act1.seen"]) == 0


def test_the_density_curve_of_a_pruner_in_rounds_is_a_density(digits_request, pruners):
    record = run_trial(digits_request(**pruned("rv-rounds", {"kind": "one-shot"})))
    assert record.state is State.SUCCEEDED, record.reason
    assert record.curves["density"].values[-1] == pytest.approx(0.2, abs=1e-3)


@pytest.mark.parametrize("lr", [1e10, 1e20, 1e30, 1e38])
def test_a_trial_whose_validation_is_not_finite_has_diverged(digits_request, lr):
    """The last step of an epoch may blow up before the next training loss shows it."""
    request = digits_request(train={"epochs": 3, "batch_size": 2000}, optimizer={"kind": "sgd", "lr": lr})
    record = run_trial(request)
    assert record.state is State.DIVERGED
    assert record.accuracy.diverged
    Record.model_validate_json((request.workdir / files.RECORD).read_text())


@pytest.mark.parametrize("schedule", [{"kind": "linear", "every": 1}, {"kind": "one-shot"}])
def test_weights_that_blow_up_at_a_pruning_or_the_conversion_are_a_divergence(digits_request, schedule):
    request = digits_request(
        train={"epochs": 3, "batch_size": 2000, "max_steps": 1},
        validation=0.0,
        optimizer={"kind": "sgd", "lr": 1e38},
        **{**pruned("magnitude", schedule), "layer": {"name": "csr"}},
    )
    assert run_trial(request).state is State.DIVERGED


def test_a_checkpoint_of_another_trial_is_not_taken_up(digits_request, monkeypatch):
    clean = run_trial(digits_request("clean", seed=1))
    other = digits_request("shared", checkpoint_every_s=1e-9, seed=0)
    interrupted(other, 30, monkeypatch)
    record = run_trial(digits_request("shared", seed=1))
    assert record.accuracy == clean.accuracy
    assert record.curves == clean.curves


def test_logits_of_integer_inputs_keep_their_dtype():
    from sparsefleet.plugin import DataInfo, TensorData
    from sparsefleet.trial.objective import evaluate

    torch.manual_seed(0)
    x = torch.randint(5, (40, 3))
    net = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Flatten(), torch.nn.Linear(12, 3))
    y = net(x).argmax(1)
    assert evaluate(net, TensorData(x, y), DataInfo("classification", (3,), 3)).metric == 1.0


def test_a_declared_epoch_that_is_never_reached_is_told(digits_request):
    record = run_trial(digits_request(train={"epochs": 2, "batch_size": 64, "test_epoch": 5}))
    assert not any(fact.what == "tested the declared epoch" for fact in record.facts)
    assert any("epoch 5 was never reached" in warning for warning in record.warnings)


def test_a_changed_kernel_changes_the_core_digest(monkeypatch):
    from sparsefleet import code_digest
    from sparsefleet.trial.identity import core_digest

    caches = (code_digest.modules_of, code_digest.module_digest, core_digest)
    before = core_digest()
    kernel = code_digest.source_of("sparsefleet.ops.csr")
    read = code_digest._read
    monkeypatch.setattr(code_digest, "_read", lambda path: read(path) + b"#" if path == kernel else read(path))
    for cache in caches:
        cache.cache_clear()
    changed = core_digest()
    monkeypatch.undo()
    for cache in caches:
        cache.cache_clear()
    assert changed != before == core_digest()


def test_a_trial_that_starts_from_its_twin_depends_on_what_trained_the_twin(tmp_path):
    """k-winners on top, relu in the twin: a changed relu changes the weights that the trial starts from."""
    import dataclasses

    from sparsefleet.fleet.enqueue import sweep_trials
    from sparsefleet.grid.load import load_grid
    from sparsefleet.registry import catalog

    grid = tmp_path / "starts.yaml"
    grid.write_text("""
name: starts
dataset: digits
model: {mlp: {hidden: [16]}}
activation: k-winners
optimizer: {sgd: {lr: 0.1}}
train: {epochs: 1}
seeds: 1
layer: csr
density: 0.1
method: {pruner: magnitude, start: twin}
""")
    plugins = catalog()
    before = {t.arm: t.key for t in sweep_trials(load_grid(str(grid), catalog=plugins), plugins, tmp_path)}
    plugins.entries = [dataclasses.replace(e, digest="changed") if e.name == "relu" else e for e in plugins.entries]
    after = {t.arm: t.key for t in sweep_trials(load_grid(str(grid), catalog=plugins), plugins, tmp_path)}
    assert set(before) == {"dense", "sparse", "small-dense"}
    assert before["dense"] != after["dense"]
    assert before["sparse"] != after["sparse"]


def test_what_is_restored_lies_where_the_network_lies():
    """The meta device stands for an accelerator: slots and the method's state may not stay on the CPU, Adam's step count must."""
    from sparsefleet.trial.checkpoint import Checkpoint
    from sparsefleet.trial.snapshot import restore
    from sparsefleet.trial.topology_curves import Watch

    network = nn.Linear(3, 2, device="meta")
    module = SimpleNamespace(weight_parameter=network.weight, method_state={}, dense_state={})
    training = SimpleNamespace(
        network=SimpleNamespace(module=network, sparse={"fc": module}),
        optimizer=torch.optim.Adam(network.parameters()),
        log=SimpleNamespace(restore=lambda stored: None),
        request=SimpleNamespace(device="cpu"),
        watch=Watch(),
    )
    tensors = {
        "net/weight": torch.zeros(2, 3),
        "net/bias": torch.zeros(2),
        "slot/weight/exp_avg": torch.ones(2, 3),
        "slot/weight/step": torch.tensor(3.0),
        "state/fc/sign": torch.ones(6),
        "dense/fc/ema": torch.ones(2, 3),
        "rng/torch": torch.get_rng_state(),
    }
    facts = dict.fromkeys(("best_on_val", "last_on_val", "test", "before_fine_tuning", "log")) | {"step": 3, "test_evals": 0}
    restore(training, Checkpoint(tensors, facts))
    slots = training.optimizer.state[network.weight]
    assert slots["exp_avg"].is_meta
    assert slots["step"].device.type == "cpu"
    assert module.method_state["sign"].is_meta
    assert module.dense_state["ema"].is_meta


def test_input_norms_of_a_convolution_are_those_of_its_unfolded_inputs():
    from sparsefleet.nn.materialise import draw_connections, materialise
    from sparsefleet.plugin import DataInfo
    from sparsefleet.registry import Registry
    from sparsefleet.trial.calibrate import NetworkCalibration
    from sparsefleet.trial.spec import PluginRef

    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, padding=1))
    layer = Registry().build("layer", PluginRef(name="masked"))
    sparse = materialise(network, {"0": (layer, draw_connections("0", (3, 2, 3, 3), 54, None, 0, torch.device("cpu")))}, seed=0)
    x = torch.randn(4, 2, 7, 7, generator=torch.Generator().manual_seed(0))
    layers = {"0": sparse["0"].connections()}
    info = DataInfo("classification", (2, 7, 7), 3)
    norms = NetworkCalibration(network, sparse, layers, [(x, torch.zeros(4))], info).input_norms()["0"]
    unfolded = nn.functional.unfold(x, 3, padding=1, stride=2).double()
    torch.testing.assert_close(norms, unfolded.square().sum((0, 2)).sqrt())


def test_small_dense_counts_layers_that_the_trial_keeps_dense(tmp_path):
    from sparsefleet.grid.expand import expand
    from sparsefleet.grid.load import load_grid
    from sparsefleet.registry import catalog
    from sparsefleet.trial.build import build_network

    grid = tmp_path / "kept.yaml"
    grid.write_text("""
name: kept
dataset: digits
model: {mlp: {hidden: [512, 512]}}
optimizer: {sgd: {lr: 0.1}}
train: {epochs: 1}
seeds: 1
layer: csr
density: 0.02
method: {rewirer: static, keep_dense: [last]}
control_arms: [small-dense]
""")
    specs = {p.arm: p.spec for p in expand(load_grid(str(grid), catalog=catalog()), catalog())}
    params = {arm: sum(p.numel() for p in build_network(spec).module.parameters()) for arm, spec in specs.items()}
    assert params["small-dense"] == pytest.approx(params["random-static"], rel=0.01)
