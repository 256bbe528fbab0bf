from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsefleet.measure import child, footprint, run
from sparsefleet.measure.clock import Clock
from sparsefleet.measure.passes import MeasureRequest, Memo, Pass, PassResult, run_passes
from sparsefleet.measure.recheck import recheck
from sparsefleet.measure.run import memory_free
from sparsefleet.measure.samples import Body
from sparsefleet.measure.sides import Forward, Method as TimedMethod, Step
from sparsefleet.registry import Registry
from sparsefleet.trial.build import build_network
from sparsefleet.trial.record import BaselineTried, Timing
from sparsefleet.trial.spec import Method, PluginRef, Sgd

from .here import measured, request_for, timing_of
from .synthetic import CountingClock
from .test_peaks import HAND
from .trained import spec_of

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning", "ignore:Sparse invariant checks:UserWarning")

NARROWS = 0.0975
"""A density at which 14 of the 128 hidden units have the sparse net's parameters: 75 * 14 + 10 = 1,060 against 1,061."""


@pytest.fixture(autouse=True)
def _threads_stay() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> CountingClock:
    """A clock that no other program can disturb: a call takes 1 ms, and one with an update of the topology and the next step 12 ms."""
    clock = CountingClock(lambda call: 1e-3 if isinstance(call, Forward | Step) else 12e-3)
    monkeypatch.setattr(run, "clock_for", lambda device, threads: clock)
    return clock


@pytest.mark.slow
@pytest.mark.parametrize("op", ["forward", "step"])
@pytest.mark.parametrize("activation", ["relu", "k-winners"])
def test_a_saved_network_is_timed_against_its_dense_twin_and_a_small_dense_net(tmp_path: Path, op: str, activation: str) -> None:
    request = request_for(spec_of(density=NARROWS, activation=PluginRef(name=activation)), tmp_path, op)
    result = measured(request)
    assert result.state == "SUCCEEDED", result.reason
    (timing,) = result.timings
    assert (timing.op, timing.batch_size, timing.execution, timing.baseline) == (op, 8, "sparse_csr", "dense_eager")
    assert timing.correctness["ok"] == 1.0
    assert timing.correctness["max_rel_err"] < timing.correctness["tol"]
    assert timing.dense_s["median"] > 0
    assert timing.rival_s["median"] > 0
    assert timing.rival_params is not None
    assert result.body is not None
    stored = timing.model_dump(mode="json")
    assert recheck(stored, result.body.encode()) == []
    assert recheck({**stored, "speedup": (timing.speedup or 0) * (1 + 1e-15) + 1e-15}, result.body.encode()) != []
    assert "samples_ref names" in recheck(stored, result.body.encode() + b" ")[0]
    assert Timing.model_validate_json(timing.model_dump_json()) == timing


@pytest.mark.slow
def test_another_process_comes_to_the_same_timing(tmp_path: Path) -> None:
    result = measured(request_for(spec_of(), tmp_path))
    (tmp_path / "timing.json").write_text(result.timings[0].model_dump_json())
    (tmp_path / "body.json").write_text(result.body or "")
    code = (
        "import json, sys, pathlib; from sparsefleet.measure.recheck import recheck; here = pathlib.Path(sys.argv[1]);"
        "print(recheck(json.loads((here / 'timing.json').read_text()), (here / 'body.json').read_bytes())); assert 'torch' not in sys.modules"
    )
    other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert (other.stdout.strip(), other.returncode) == ("[]", 0), other.stderr


def test_the_small_dense_net_has_the_parameters_of_the_sparse_one(tmp_path: Path) -> None:
    """Its parameters are its connections and 138 biases."""
    spec = spec_of(density=NARROWS)
    live = build_network(spec)
    params = 138 + sum(module.nnz for module in live.sparse.values())
    timing = timing_of(request_for(spec, tmp_path))
    assert timing.rival_params == pytest.approx(params, rel=0.01)


def test_a_model_that_narrows_to_other_sizes_only_has_no_rival(tmp_path: Path, still: CountingClock) -> None:
    """1,085 parameters lie between those of 14 hidden units (1,060) and of 15 (1,135), both more than 1 % away."""
    timing = timing_of(request_for(spec_of(), tmp_path))
    assert (timing.rival_s, timing.rival_speedup, timing.rival_verdict) == ({}, None, "NONE")
    assert "the model narrows to" in timing.rival_note
    assert (timing.speedup, timing.verdict, timing.reasons) == (pytest.approx(1.0), "SAME", [])


def test_timing_a_step_leaves_the_weights_where_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_for(spec_of(), tmp_path, "step")
    networks = []
    load = run.load_network
    monkeypatch.setattr(run, "load_network", lambda *args, **kwargs: networks.append(load(*args, **kwargs)) or networks[-1])
    assert measured(request).state == "SUCCEEDED"
    before = load_file(request.model)
    for name, value in networks[0].module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-6, atol=1e-6)


def test_a_wrong_layer_gets_no_timing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsefleet_plugins.layers.csr import CsrLinear

    honest = CsrLinear.forward
    monkeypatch.setattr(CsrLinear, "forward", lambda self, x: honest(self, x) * 1.001)
    result = measured(request_for(spec_of(), tmp_path))
    assert (result.state, result.timings, result.body) == ("INCORRECT", [], None)
    assert str(result.reason).startswith("before the clock started")


def test_a_layer_that_turns_wrong_under_the_clock_is_caught_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsefleet_plugins.layers.csr import CsrLinear

    honest, compare, started = CsrLinear.forward, run.compare, []

    def late(*args: object, **kwargs: object) -> object:
        started.append(True)
        return compare(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "compare", late)
    monkeypatch.setattr(CsrLinear, "forward", lambda self, x: honest(self, x) * (2.0 if started else 1.0))
    result = measured(request_for(spec_of(), tmp_path))
    assert (result.state, result.timings) == ("INCORRECT", [])
    assert str(result.reason).startswith("under the clock")


def test_masked_is_timed_alone(tmp_path: Path) -> None:
    timing = timing_of(request_for(spec_of("masked"), tmp_path))
    assert (timing.speedup, timing.ci95, timing.dense_s, timing.baseline, timing.verdict) == (None, None, {}, "none", "NONE")
    assert (timing.rival_s, timing.rival_verdict) == ({}, "NONE")
    assert timing.sparse_s["median"] > 0
    assert "masked_dense never enters a speed-up" in timing.note


def test_a_twin_that_does_not_fit_is_a_value_and_the_small_net_is_still_a_rival(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, still: CountingClock
) -> None:
    monkeypatch.setattr(run, "memory_free", lambda device: 50_000)
    timing = timing_of(request_for(spec_of(density=NARROWS), tmp_path))
    assert (timing.speedup, timing.verdict, timing.dense_s) == (None, "NONE", {})
    assert "dense infeasible: the copies that a comparison holds need" in timing.note
    assert (timing.rival_speedup, timing.rival_verdict, timing.rival_reasons) == (pytest.approx(1.0), "SAME", [])
    assert isinstance(timing.theory["rival_limit_s"], float)
    assert "dense_limit_s" not in timing.theory
    free = memory_free("cpu")
    assert free is None or free > 0


@pytest.mark.slow
def test_a_later_process_takes_over_what_the_first_one_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The free memory may change between two processes of a figure; what they are timed against may not."""
    monkeypatch.setattr(run, "memory_free", lambda device: 50_000)
    request = request_for(spec_of(density=NARROWS), tmp_path)
    decided = [child.run(request.model_copy(update={"versus": versus})).facts["versus"] for versus in ("", "dense")]
    assert decided == ["rival", "dense"]
    monkeypatch.setattr(run, "memory_free", lambda device: None)
    assert child.run(request.model_copy(update={"versus": "rival"})).facts["versus"] == "rival"


@pytest.mark.parametrize("refresh", [False, True])
def test_a_peaks_pass_takes_the_limits_again_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refresh: bool) -> None:
    from sparsefleet.measure import peaks

    asked = []
    monkeypatch.setattr(peaks, "peaks", lambda device, threads, *, refresh: asked.append((device, threads, refresh)) or HAND)
    request = request_for(spec_of(), tmp_path)
    assert child.run(request.model_copy(update={"part": Pass(kind="peaks", refresh=refresh)})).facts == HAND.to_json()
    assert asked == [("cpu", 1, refresh)]


@pytest.mark.slow
def test_three_processes_make_one_figure(tmp_path: Path) -> None:
    seen = []

    def one(asked: MeasureRequest) -> PassResult:
        seen.append((asked.part.kind, asked.part.side, asked.part.process, bool(asked.chosen)))
        return child.run(asked)

    result = measured(request_for(spec_of(), tmp_path, level="publish"), one)
    (timing,) = result.timings
    assert (timing.processes, timing.level) == (3, "publish")
    assert timing.between is not None
    assert timing.rounds >= 60
    assert seen[:3] == [("time", "", 0, False), ("time", "", 1, True), ("time", "", 2, True)]
    assert [part[:2] for part in seen[3:]] == [("memory", "sparse"), ("memory", "dense")]


@pytest.mark.slow
def test_a_second_measurement_names_the_samples_of_the_first(tmp_path: Path) -> None:
    request = request_for(spec_of(), tmp_path)
    first = measured(request)
    second = run_passes(request, child.run, Memo(peaks={("cpu", 1): {}}), [first.timings[0].samples_ref])
    assert second is not None
    assert (second.timings[0].attempt, second.timings[0].earlier) == (2, [first.timings[0].samples_ref])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from /proc")
def test_memory_is_measured_in_passes_of_its_own(tmp_path: Path) -> None:
    memory = timing_of(request_for(spec_of(), tmp_path, "step")).memory
    assert memory["peak_kind"] == "VmHWM"
    assert isinstance(memory["held_bytes"], float)
    assert memory["peak_bytes"] >= memory["held_bytes"] > 0  # type: ignore[operator]
    assert "dense_peak_bytes" in memory


@pytest.mark.slow
def test_a_compiled_dense_net_is_a_candidate_and_the_choice_is_recorded(tmp_path: Path) -> None:
    """Whatever is chosen: each candidate has a time or a reason, exactly one of them is the baseline, and a later process takes it over."""
    request = request_for(spec_of(), tmp_path)
    request = request.model_copy(update={"job": request.job.model_copy(update={"baselines": ("dense_eager", "dense_compiled")})})
    timing = timing_of(request)
    tried = {row.name: row for row in timing.baselines_tried}
    assert set(tried) == {"dense_eager", "dense_compiled"}
    assert [name for name, row in tried.items() if not row.why_not] == [timing.baseline]
    for row in tried.values():
        assert (row.median_s or 0) > 0 or row.why_not.startswith("does not compile here")


@pytest.mark.slow
def test_the_child_writes_its_result_and_says_what_is_missing(tmp_path: Path) -> None:
    request = request_for(spec_of(), tmp_path)
    path, answer = tmp_path / "request.json", tmp_path / "result.json"
    path.write_text(request.model_dump_json(by_alias=True))
    blocked = (
        "import sys; sys.modules.update(ray=None, mlflow=None); from sparsefleet.measure.child import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", blocked, str(path), str(answer)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(answer.read_text())
    assert result["state"] == "SUCCEEDED"
    assert result["samples"]["order"]
    request.model.unlink()
    assert "is not there" in str(child.run(request).reason)


def test_a_damaged_model_is_that_jobs_problem(tmp_path: Path) -> None:
    request = request_for(spec_of(), tmp_path)
    save_file({"fc1.bias": torch.zeros(3)}, request.model)
    result = measured(request)
    assert result.state in ("INVALID", "PLUGIN_ERROR")
    assert result.timings == []


@pytest.mark.slow
def test_work_at_some_steps_is_spread_over_all(tmp_path: Path, still: CountingClock) -> None:
    """SET rewires after every 20th step of 1000 but the last: 49 of 1000 steps have an update, as long as 11 steps of 1 ms."""
    rewires = Method(rewirer=PluginRef(name="set", params={"every": 20}))
    timing = timing_of(request_for(spec_of(method=rewires, optimizer=Sgd(lr=0.1)), tmp_path, "step", budget_s=5.0))
    assert timing.sparse_s["median"] == pytest.approx(1e-3 * (1 + 0.049 * 10))
    assert timing.method_share == pytest.approx(0.49 / 1.49)
    assert timing.speedup == pytest.approx(1 / 1.49)
    assert timing.note == "an update takes as long as 11.0 steps, and 4.9 % of the steps have one"
    static = timing_of(request_for(spec_of(optimizer=Sgd(lr=0.1)), tmp_path / "static", "step", budget_s=5.0))
    assert (static.method_share, static.note) == (0, "")
    assert timing_of(request_for(spec_of(method=rewires), tmp_path / "forward")).method_share == 0


def test_what_an_update_costs_is_in_the_raw_samples(tmp_path: Path) -> None:
    """By the real clock: 20 rounds of steps with and without an update, and the timing follows from them to the last digit."""
    rewires = Method(rewirer=PluginRef(name="set", params={"every": 20}))
    result = measured(request_for(spec_of(method=rewires, optimizer=Sgd(lr=0.1)), tmp_path, "step", budget_s=5.0))
    body = (result.body or "").encode()
    (samples,) = Body.from_bytes(body).processes
    assert samples.updates is not None
    assert (samples.updates.rounds, samples.update_share) == (20, 0.049)
    assert all(seconds > 0 for side in ("plain", "update") for seconds in samples.updates.seconds[side])
    assert recheck(result.timings[0].model_dump(mode="json"), body) == []


@pytest.mark.parametrize(
    ("rewirer", "share", "at_every_step"),
    [
        (PluginRef(name="set", params={"every": 20}), 0.049, False),
        (PluginRef(name="set", params={"every": 2}), 0.499, False),
        (PluginRef(name="rigl", params={"every": 1, "stop": 0.75}), 0.749, False),
        (PluginRef(name="deep-r"), 1.0, True),
    ],
)
def test_only_what_happens_at_every_step_is_timed_at_every_step(rewirer: PluginRef, share: float, at_every_step: bool) -> None:
    """A step in two, or three in four, are not all of them: timed as if they were, the method would seem slower than it is."""
    method = TimedMethod(Registry().build("rewirer", rewirer), {}, {}, (1000, 100))
    assert (method.share, method.at_every_step) == (share, at_every_step)


def test_the_dense_peak_is_that_of_the_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(footprint, "compiled", lambda network, threads: asked.append(threads) or network)
    request = request_for(spec_of(), tmp_path)
    part = Pass(kind="memory", side="dense")
    for name in ("dense_eager", "dense_compiled"):
        chosen = [BaselineTried(name=form, why_not="" if form == name else "slower") for form in ("dense_eager", "dense_compiled")]
        assert child.run(request.model_copy(update={"part": part, "chosen": {"dense": chosen}})).facts["held_bytes"] > 0
        assert asked == [] if name == "dense_eager" else [1]
    assert (
        child.run(request.model_copy(update={"part": Pass(kind="memory", side="sparse"), "chosen": {"dense": chosen}})).state == "SUCCEEDED"
    )
    assert asked == [1]


def test_work_at_every_step_is_timed_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, still: CountingClock) -> None:
    """DEEP R rewires after every step: the timed step does so too, in every block, and nothing is left to be spread."""
    rewired, rewire = [], TimedMethod.rewire
    monkeypatch.setattr(TimedMethod, "rewire", lambda self: rewired.append(rewire(self)))
    deep_r = request_for(spec_of(rewirer="deep-r", optimizer=Sgd(lr=0.1)), tmp_path / "deep-r", "step", budget_s=5.0)
    found = child.run(deep_r)
    assert found.samples is not None, found.reason
    blocks = 50 * found.samples["calls"]["sparse"]
    assert len(rewired) == blocks + found.samples["warmup"]["sparse_calls"]
    assert (found.samples["updates"], found.facts["correctness"]["audit_skipped"]) == (None, 1.0)
    rewired.clear()
    assert child.run(request_for(spec_of(optimizer=Sgd(lr=0.1)), tmp_path / "static", "step")).state == "SUCCEEDED"
    assert rewired == []


def test_a_layer_that_an_update_turns_wrong_is_caught_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsefleet_plugins.layers.csr import CsrLinear

    honest, compare_updates, done = CsrLinear.forward, run.compare_updates, []

    def late(*args: object, **kwargs: object) -> object:
        found = compare_updates(*args, **kwargs)  # type: ignore[arg-type]
        done.append(True)
        return found

    monkeypatch.setattr(run, "compare_updates", late)
    monkeypatch.setattr(CsrLinear, "forward", lambda self, x: honest(self, x) * (1.001 if done else 1.0))
    rewires = Method(rewirer=PluginRef(name="set", params={"every": 20}))
    result = measured(request_for(spec_of(method=rewires, optimizer=Sgd(lr=0.1)), tmp_path, "step"))
    assert (result.state, result.timings) == ("INCORRECT", [])
    assert str(result.reason).startswith("after the clock stopped")


@pytest.mark.parametrize(("level", "rounds"), [("screen", 40), ("publish", 43)])
def test_the_budget_leaves_the_rounds_that_the_levels_gates_ask_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str, rounds: int
) -> None:
    plans, compare = [], run.compare

    def watched(*args: object, **kwargs: object) -> object:
        plans.append(kwargs["plan"])
        return compare(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "compare", watched)
    assert child.run(request_for(spec_of(), tmp_path, level=level)).state == "SUCCEEDED"
    assert [plan.min_rounds for plan in plans] == [rounds]


def test_the_clock_is_told_the_jobs_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, clock_for = [], run.clock_for

    def watched(device: str, threads: int) -> Clock:
        told.append((device, threads))
        return clock_for(device, threads)

    monkeypatch.setattr(run, "clock_for", watched)
    timing_of(request_for(spec_of(), tmp_path))
    assert told == [("cpu", 1)]
