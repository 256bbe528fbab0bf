from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsefleet.measure import child, run
from sparsefleet.measure.clock import Clock
from sparsefleet.measure.config import groups
from sparsefleet.measure.estimate import recompute
from sparsefleet.measure.run import MeasureRequest, measure, memory_free
from sparsefleet.measure.samples import read_all
from sparsefleet.registry import Registry
from sparsefleet.trial.record import Timing
from sparsefleet.trial.spec import PluginRef, Sgd, TrialSpec

from .trained import row_of, save, spec_of

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning", "ignore:Sparse invariant checks:UserWarning")


@pytest.fixture(autouse=True)
def _threads_stay() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def request_for(spec: TrialSpec, folder: Path, op: str = "forward", **options: object) -> MeasureRequest:
    _, model, masks = save(spec, folder / "trial")
    (job,) = groups([row_of(spec)], [8], [op], also_masked=True)  # type: ignore[list-item]
    values = {"job": job, "model": model, "masks": masks, "workdir": folder / "work", "budget_s": 0.2, "warmup_cap_s": 0.2}
    return MeasureRequest.model_validate(values | options)


@pytest.mark.parametrize("op", ["forward", "step"])
@pytest.mark.parametrize("activation", ["relu", "k-winners"])
def test_a_saved_network_is_timed_against_its_dense_twin(tmp_path: Path, op: str, activation: str) -> None:
    request = request_for(spec_of(activation=PluginRef(name=activation)), tmp_path, op)
    result = measure(request)
    assert result.state == "SUCCEEDED", result.reason
    (timing,) = result.timings
    assert (timing.op, timing.batch_size, timing.execution, timing.baseline) == (op, 8, "sparse_csr", "dense_eager")
    assert timing.correctness["ok"] == 1.0
    assert timing.correctness["max_rel_err"] < timing.correctness["tol"]
    assert timing.dense_s["median"] > 0
    assert timing.fingerprint == result.fingerprint["id"]
    name, _, sha256 = timing.samples_ref.partition("#sha256=")
    samples = read_all(request.workdir / name, sha256)[timing.config_key]
    again = recompute(samples)
    assert (again.speedup, again.ci95, again.aa_ratio, again.kept) == (timing.speedup, timing.ci95, timing.aa_ratio, timing.kept)
    assert Timing.model_validate_json(timing.model_dump_json()) == timing


def test_timing_a_step_leaves_the_weights_where_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of()
    request = request_for(spec, tmp_path, "step")
    networks = []
    load = run.load_network
    monkeypatch.setattr(run, "load_network", lambda *args, **kwargs: networks.append(load(*args, **kwargs)) or networks[-1])
    assert measure(request).state == "SUCCEEDED"
    before = load_file(request.model)
    for name, value in networks[0].module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-6, atol=1e-6)


def test_a_wrong_layer_gets_no_timing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsefleet_plugins.layers.csr import CsrLinear

    honest = CsrLinear.forward
    monkeypatch.setattr(CsrLinear, "forward", lambda self, x: honest(self, x) * 1.001)
    result = measure(request_for(spec_of(), tmp_path))
    assert result.state == "INCORRECT"
    assert result.timings == []
    assert result.reason is not None
    assert result.reason.startswith("before the clock started")


def test_a_layer_that_turns_wrong_under_the_clock_is_caught_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsefleet_plugins.layers.csr import CsrLinear

    honest, clock_for, started = CsrLinear.forward, run.clock_for, []

    def late(device: str, threads: int) -> Clock:
        started.append(True)
        return clock_for(device, threads)

    monkeypatch.setattr(run, "clock_for", late)
    monkeypatch.setattr(CsrLinear, "forward", lambda self, x: honest(self, x) * (2.0 if started else 1.0))
    result = measure(request_for(spec_of(), tmp_path))
    assert (result.state, result.timings) == ("INCORRECT", [])
    assert str(result.reason).startswith("after the clock stopped")


def test_masked_is_timed_alone(tmp_path: Path) -> None:
    (timing,) = measure(request_for(spec_of("masked"), tmp_path)).timings
    assert (timing.speedup, timing.ci95, timing.dense_s, timing.baseline) == (None, None, {}, "none")
    assert timing.sparse_s["median"] > 0
    assert "masked_dense never enters a speed-up" in timing.note


def test_a_twin_that_does_not_fit_is_a_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "memory_free", lambda device: 50_000)
    (timing,) = measure(request_for(spec_of(), tmp_path)).timings
    assert timing.speedup is None
    assert "dense infeasible: two copies need" in timing.note
    free = memory_free("cpu")
    assert free is None or free > 0


def test_the_child_writes_its_result_and_says_what_is_missing(tmp_path: Path) -> None:
    request = request_for(spec_of(), tmp_path)
    path = tmp_path / "request.json"
    path.write_text(request.model_dump_json())
    blocked = (
        "import sys; sys.modules.update(ray=None, mlflow=None); from sparsefleet.measure.child import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", blocked, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((request.workdir / child.RESULT).read_text())
    assert result["state"] == "SUCCEEDED"
    assert (request.workdir / "samples.json").is_file()
    request.model.unlink()
    assert "is not there" in child.run(request.model_dump(mode="json"))["reason"]


def test_a_damaged_model_is_that_jobs_problem(tmp_path: Path) -> None:
    request = request_for(spec_of(), tmp_path)
    save_file({"fc1.bias": torch.zeros(3)}, request.model)
    result = child.run(request.model_dump(mode="json"))
    assert result["state"] in ("INVALID", "PLUGIN_ERROR")
    assert result["timings"] == []


@pytest.mark.parametrize(
    ("rewirer", "told", "trusted"),
    [("static", "", True), ("set", "rewiring, at some steps", True), ("deep-r", "own work after every step", False)],
)
def test_a_step_that_leaves_out_the_methods_work_says_so(tmp_path: Path, rewirer: str, told: str, trusted: bool) -> None:
    """DEEP R rewires at every step: a training step takes several times as long as the timed one, so its speed-up may not be trusted."""
    spec = spec_of(rewirer=rewirer, optimizer=Sgd(lr=0.1))
    job = request_for(spec, tmp_path, "step").job
    work, at_every_step = run._left_out(job, Registry())
    assert told in work
    assert bool(work) == bool(told)
    assert at_every_step is not trusted
    if not trusted:
        (timing,) = measure(request_for(spec, tmp_path, "step")).timings
        assert timing.note.startswith("not trusted: the method's own work")
    assert run._left_out(request_for(spec, tmp_path, "forward").job, Registry()) == ("", False)
