"""Uploading into a real SQLite database: everything once, however often it is cut off and repeated."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from track_homes import END, START, commit, enter_sweep, filled_home, key_of, spec_of, sweep_trials, upload
from track_state import everything, trial_runs

from sparsefleet.ledger import open_ledger
from sparsefleet.ledger.lock import SweepLock
from sparsefleet.ledger.store import ArtifactStore
from sparsefleet.track import facts, names, read, server
from sparsefleet.track.upload import Following, drain, finish, spawn
from sparsefleet.track.writer import Writer
from sparsefleet.trial.masks import load_masks

TABLE = "| method | accuracy |\n|---|---|\n| rigl | 0.901 |\n"
SAMPLES = b'{"schema":"sf-samples/2","processes":[],"facts":{},"fingerprint":{"id":"fp:x"}}'
TIMING: dict[str, Any] = {
    "protocol": "test",
    "level": "publish",
    "config_key": "c" * 64,
    "op": "step",
    "batch_size": 64,
    "dtype": "float32",
    "device": "cpu",
    "threads": 1,
    "execution": "csr",
    "baseline": "dense_eager",
    "baselines_tried": [{"name": "dense_eager", "median_s": 0.002, "compile_s": None, "why_not": ""}],
    "dense_s": {"median": 0.002},
    "sparse_s": {"median": 0.001},
    "rival_s": {"median": 0.0008},
    "speedup": 2.0,
    "ci95": [1.9, 2.1],
    "verdict": "FASTER",
    "reasons": [],
    "rival_speedup": 0.8,
    "rival_ci95": [0.79, 0.81],
    "rival_verdict": "SLOWER",
    "rival_reasons": [],
    "rival_vs_dense": None,
    "rival_vs_dense_ci95": None,
    "rival_vs_dense_verdict": "NONE",
    "rival_params": 1200,
    "rival_note": "",
    "aa_ratio": 1.0,
    "drift": 1.0,
    "rounds": 10,
    "kept": 10,
    "dropped": {},
    "processes": 3,
    "between": 0.01,
    "warmup_s": 0.5,
    "prepare_s": 0.008,
    "breakeven_calls": 8.0,
    "method_share": 0.02,
    "correctness": {},
    "theory": {"flop_ratio": 10.0, "roofline_speedup": 5.0, "realised_fraction": 0.2, "fraction_of_limit": 0.4, "bound": "memory"},
    "memory": {"peak_bytes": 1000, "dense_peak_bytes": 9000, "peak_kind": "VmHWM"},
    "samples_ref": "",
    "earlier": [],
    "fingerprint": "fp:x",
    "attempt": 1,
    "note": "",
}


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


class CutOff:
    """A client that dies at its n-th call, before the server saw it or after it did."""

    def __init__(self, client: Any, nth: int, *, after: bool) -> None:
        self._client, self._left, self._after = client, nth, after

    def __getattr__(self, name: str) -> Any:
        call: Callable[..., Any] = getattr(self._client, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise Killed
            answer = call(*args, **kwargs)
            if self._left == 0:
                raise Killed
            return answer

        return counted


def write_all(home: Path, client: Any) -> None:
    """What the uploader does between its start and its end."""
    with open_ledger(home) as ledger:
        store = ArtifactStore((home / "artifacts").as_uri())
        where = server.artifact_location(home, server.local_uri(home))
        writer = Writer(client, ledger, store, home_id=server.home_id(home), artifact_location=where)
        while items := ledger.outbox():
            for item in items:
                ledger.mark_uploaded(item.id, writer.write(item) or None)
        writer.reconcile()


def full_home(home: Path) -> None:
    """Two trials, a timing and a table."""
    trials = filled_home(home, 2)
    with open_ledger(home) as ledger:
        ledger.commit_timing("quick-12345678", "c" * 64, [trials[1].key], "SUCCEEDED", [TIMING], SAMPLES, None)
        ledger.enqueue("table", "quick-12345678", None, {"markdown": TABLE})


def send_again(home: Path) -> None:
    """Forget what was uploaded; nothing but the outbox knows."""
    with open_ledger(home) as ledger:
        ledger.upload_again("quick-12345678")


def test_a_committed_trial_is_one_run_with_everything(home: Path) -> None:
    trials = filled_home(home, 2)
    assert drain(home, server.local_uri(home), Following()) == 0
    client = server.connect(server.local_uri(home))
    runs = {run.data.tags[names.TRIAL_KEY]: run for run in trial_runs(client)}
    assert set(runs) == {trial.key for trial in trials}
    dense, sparse = (runs[trial.key] for trial in trials)
    assert sparse.info.status == "FINISHED"
    assert (sparse.info.start_time, sparse.info.end_time) == (facts.milliseconds(START), facts.milliseconds(END))
    assert sparse.data.tags[names.TWIN] == trials[0].spec_id
    assert sparse.data.tags[names.ARM] == "sparse"
    assert names.TWIN not in dense.data.tags
    assert sparse.data.params["method.rewirer"] == "rigl"
    assert sparse.data.params["method.rewirer.drop_fraction"] == "0.3"
    assert sparse.data.params["model.hidden"] == "[64]"
    assert sparse.data.metrics[names.ACCURACY] == 0.901
    assert sparse.data.metrics[names.RESIDENT] == 12_000
    assert len(client.get_metric_history(sparse.info.run_id, "curve/train_loss")) == 30
    assert [used.dataset.name for used in sparse.inputs.dataset_inputs] == ["digits"]
    (model,) = (m for m in client.search_logged_models([sparse.info.experiment_id]) if m.source_run_id == sparse.info.run_id)
    assert str(model.status) == "READY"
    assert {metric.key: metric.value for metric in model.metrics}[names.ACCURACY] == 0.901
    folder = Path(model.artifact_location.removeprefix("file://"))
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "spec.json"]
    masks = client.download_artifacts(sparse.info.run_id, names.MASK_FOLDER, str(home))
    assert load_masks(Path(masks))["0"].flat.numel() == 400


def test_a_server_that_lost_everything_is_given_it_again(home: Path, empty_database: Path) -> None:
    full_home(home)
    write_all(home, server.connect(server.local_uri(home)))
    wanted = everything(server.connect(server.local_uri(home)))
    other = home.parent / "mlflow-of-today.db"
    shutil.copy(empty_database, other)
    send_again(home)
    client = server.connect(f"sqlite:///{other}")
    write_all(home, client)
    assert everything(client) == wanted


def test_a_trial_that_runs_again_after_damage_shows_its_timing_again(home: Path) -> None:
    full_home(home)
    client = server.connect(server.local_uri(home))
    write_all(home, client)
    (sparse,) = (trial for trial in sweep_trials(2) if trial.arm == "sparse")
    with open_ledger(home) as ledger:
        ledger.set_aside(sparse.key, "its record was altered")
    shutil.rmtree(home / "work" / sparse.key)
    commit(home, "quick-12345678", sparse)
    assert drain(home, server.local_uri(home), Following()) == 0
    (run,) = (run for run in trial_runs(client) if run.data.tags[names.TRIAL_KEY] == sparse.key)
    assert run.data.metrics["timing/step-b64-float32/speedup_ratio"] == 2.0


@pytest.mark.parametrize("stride", [23, pytest.param(1, marks=pytest.mark.slow)])
def test_cut_off_at_a_call_and_repeated_it_is_the_same(home: Path, stride: int) -> None:
    full_home(home)
    uri = server.local_uri(home)
    pristine = {path: path.read_bytes() for path in (home / "mlflow.db", home / "ledger.db")}
    client = server.connect(uri)
    write_all(home, client)
    wanted = everything(client)
    (sparse,) = (run for run in wanted["quick"]["runs"] if run["tags"].get(names.ARM) == "sparse")
    assert [value for _, _, value in sparse["metrics"]["timing/step-b64-float32/speedup_ratio"]] == [2.0]
    assert [value for _, _, value in sparse["metrics"]["timing/step-b64-float32/vs_small_dense_ratio"]] == [0.8]
    assert sparse["tags"]["sparsefleet.verdict.step-b64-float32"] == "FASTER"
    assert f"timings/{'c' * 64}.json" in sparse["artifacts"]
    assert len(wanted["quick"]["runs"]) == 3
    cuts = 0
    for after in (False, True):
        nth = 1
        while True:
            nth += stride
            client = _start_over(home, pristine)
            try:
                write_all(home, CutOff(client, nth, after=after))
            except Killed:
                cuts += 1
            else:
                break
            write_all(home, client)
            assert everything(client) == wanted, f"cut off {'after' if after else 'before'} call {nth}"
    assert cuts >= 2 * (40 // stride)


def _start_over(home: Path, pristine: dict[Path, bytes]) -> Any:
    from mlflow.tracking._tracking_service.utils import _get_store

    client = server.connect(server.local_uri(home))
    _get_store(server.local_uri(home)).engine.dispose()
    for path, data in pristine.items():
        for tail in ("-wal", "-shm"):
            path.with_name(path.name + tail).unlink(missing_ok=True)
        path.write_bytes(data)
    return client


def test_repeating_a_finished_upload_changes_nothing(home: Path) -> None:
    full_home(home)
    client = server.connect(server.local_uri(home))
    write_all(home, client)
    wanted = everything(client)
    send_again(home)
    write_all(home, client)
    assert everything(client) == wanted


def test_a_trial_of_two_sweeps_is_one_run_that_both_list(home: Path) -> None:
    trials = filled_home(home, 2)
    enter_sweep(home, 4, sweep="other-87654321", name="other")
    assert drain(home, server.local_uri(home), Following()) == 0
    client = server.connect(server.local_uri(home))
    runs = trial_runs(client)
    assert sorted(run.data.tags[names.TRIAL_KEY] for run in runs) == sorted(trial.key for trial in trials)
    assert {run.data.tags[names.SWEEP] for run in runs} == {"quick-12345678"}
    (other,) = client.search_runs([client.get_experiment_by_name("other").experiment_id])
    listed = Path(client.download_artifacts(other.info.run_id, names.SWEEP_JSON, str(home))).read_text()
    assert all(key_of(spec_of(seed, sparse=sparse)) in listed for seed in (0, 1) for sparse in (False, True))


def test_a_trial_that_ran_again_replaces_its_run(home: Path) -> None:
    home.mkdir(exist_ok=True)
    trials = enter_sweep(home, 2)
    with open_ledger(home) as ledger:
        attempt = ledger.lease(trials[1].key, "quick-12345678", "here")
        assert attempt == 1
        ledger.end_attempt(trials[1].key, 1, "CRASHED", "signal 11", requeue=False, final_state="POISONED")
    assert drain(home, server.local_uri(home), Following()) == 0
    client = server.connect(server.local_uri(home))
    (run,) = trial_runs(client)
    assert (run.info.status, run.data.tags[names.STATE], run.data.tags[names.REASON]) == ("FAILED", "POISONED", "signal 11")
    with open_ledger(home) as ledger:
        assert ledger.retry_failed("quick-12345678") == 1
    commit(home, "quick-12345678", trials[1])
    assert drain(home, server.local_uri(home), Following()) == 0
    (run,) = trial_runs(client)
    assert (run.info.status, run.data.tags[names.ATTEMPT]) == ("FINISHED", "2")


def test_a_trial_that_ran_again_under_another_grid_replaces_its_run(home: Path) -> None:
    trials = enter_sweep(home, 2)
    with open_ledger(home) as ledger:
        assert ledger.lease(trials[1].key, "quick-12345678", "here") == 1
        ledger.end_attempt(trials[1].key, 1, "PLUGIN_ERROR", "it raised", requeue=False, final_state="PLUGIN_ERROR")
    enter_sweep(home, 4, sweep="other-87654321", name="other")
    assert drain(home, server.local_uri(home), Following()) == 0
    client = server.connect(server.local_uri(home))
    assert [run.data.tags[names.SWEEP] for run in trial_runs(client)] == ["quick-12345678"]
    with open_ledger(home) as ledger:
        assert ledger.retry_failed("other-87654321") == 1
    commit(home, "other-87654321", trials[1])
    assert drain(home, server.local_uri(home), Following()) == 0
    (run,) = trial_runs(client)
    assert [run.data.tags[name] for name in (names.SWEEP, names.ATTEMPT, names.STATE)] == ["other-87654321", "2", "SUCCEEDED"]


def test_a_result_that_waits_while_its_sweep_gets_other_keys_is_uploaded(home: Path) -> None:
    """``resume --accept-new-code``, or another selection of the same grid: records stay, and MLflow gets them."""
    trials = filled_home(home, 2)
    renewed = replace(trials[1], key="f" * 64)
    with open_ledger(home) as ledger:
        ledger.create_sweep("quick-12345678", "quick", "quick-12345678", "name: quick\n", {}, [renewed])
        assert drain(home, server.local_uri(home), Following()) == 0
        assert ledger.outbox_size() == 0
    runs = {run.data.tags[names.TRIAL_KEY]: run for run in trial_runs(server.connect(server.local_uri(home)))}
    assert set(runs) == {trial.key for trial in trials}
    dense, sparse = (runs[trial.key].data.tags for trial in trials)
    assert (dense[names.ARM], sparse[names.ARM], sparse[names.TWIN]) == ("dense", "sparse", trials[0].spec_id)
    assert (sparse[names.SWEEP], sparse[names.STATE]) == ("quick-12345678", "SUCCEEDED")


def test_what_a_second_measurement_did_not_confirm_orders_no_runs(home: Path) -> None:
    full_home(home)
    client = server.connect(server.local_uri(home))
    place, sparse_key = "timing/step-b64-float32", sweep_trials(2)[1].key

    def measured(state: str, *timings: dict[str, Any]) -> Any:
        with open_ledger(home) as ledger:
            ledger.commit_timing("quick-12345678", "c" * 64, [sparse_key], state, timings, None, "wrong under the clock")
        assert drain(home, server.local_uri(home), Following()) == 0
        return next(run.data for run in trial_runs(client) if run.data.tags[names.TRIAL_KEY] == sparse_key)

    def faster() -> int:
        found = client.search_runs(["1"], f"metrics.`{place}/speedup_ratio` > 1 AND tags.`sparsefleet.verdict.step-b64-float32` = 'FASTER'")
        return len(found)

    assert drain(home, server.local_uri(home), Following()) == 0
    assert faster() == 1
    doubted = measured("SUCCEEDED", {**TIMING, "rival_verdict": "NOT_TRUSTWORTHY"})
    assert (doubted.metrics[f"{place}/speedup_ratio"], faster()) == (2.0, 1)
    assert math.isnan(doubted.metrics[f"{place}/vs_small_dense_ratio"])
    wrong = measured("INCORRECT")
    assert all(math.isnan(value) for name, value in wrong.metrics.items() if name.startswith(f"{place}/"))
    assert wrong.metrics[names.ACCURACY] == 0.901
    assert faster() == 0
    assert wrong.tags["sparsefleet.verdict.step-b64-float32"] == wrong.tags["sparsefleet.verdict_small_dense.step-b64-float32"] == "NONE"
    assert wrong.tags["sparsefleet.verdict_reasons.step-b64-float32"] == "INCORRECT: wrong under the clock"
    again = measured("SUCCEEDED", TIMING)
    assert (again.metrics[f"{place}/vs_small_dense_ratio"], faster()) == (0.8, 1)


def test_a_timing_that_its_sweep_replaced_orders_no_runs_and_stands_in_no_table(home: Path) -> None:
    full_home(home)
    client = server.connect(server.local_uri(home))
    place, sparse_key = "timing/step-b64-float32", sweep_trials(2)[1].key

    def sparse() -> Any:
        assert drain(home, server.local_uri(home), Following()) == 0
        return next(run.data for run in trial_runs(client) if run.data.tags[names.TRIAL_KEY] == sparse_key)

    assert sparse().metrics[f"{place}/speedup_ratio"] == 2.0
    with open_ledger(home) as ledger:
        (row,) = ledger.timings("quick-12345678")
        ledger.share_timing("quick-12345678", row, [])
    data = sparse()
    assert all(math.isnan(value) for name, value in data.metrics.items() if name.startswith(f"{place}/"))
    assert data.tags["sparsefleet.verdict.step-b64-float32"] == "NONE"
    assert data.tags["sparsefleet.verdict_reasons.step-b64-float32"].startswith("REPLACED: ")
    assert read.rows("quick", server.local_uri(home))[1] == []
    with open_ledger(home) as ledger:
        ledger.share_timing("quick-12345678", row, row.keys)
    assert sparse().metrics[f"{place}/speedup_ratio"] == 2.0
    assert read.rows("quick", server.local_uri(home))[1] == [row]


def test_a_damaged_timing_keeps_no_other_from_mlflow(home: Path) -> None:
    full_home(home)
    with open_ledger(home) as ledger:
        ledger.commit_timing("quick-12345678", "d" * 64, [sweep_trials(2)[1].key], "SUCCEEDED", [{**TIMING, "op": "forward"}], SAMPLES)
        ledger._db.execute("UPDATE timings SET timings=replace(timings, '0.002', '0.004') WHERE config_key LIKE 'd%'")
        assert drain(home, server.local_uri(home), Following()) == 1
        assert [item.key for item in ledger.outbox()] == ["d" * 64]
    assert [row.config_key for row in read.rows("quick", server.local_uri(home))[1]] == ["c" * 64]


def test_a_timing_whose_file_is_refused_leaves_the_former_one_whole(home: Path) -> None:
    class Refusing:
        def __getattr__(self, name: str) -> Any:
            return getattr(client, name)

        def log_artifacts(self, run_id: str, folder: str) -> None:
            if (Path(folder) / "timings").exists():
                raise Killed
            client.log_artifacts(run_id, folder)

    full_home(home)
    client = server.connect(server.local_uri(home))
    write_all(home, client)
    with open_ledger(home) as ledger:
        known = ledger.timings("quick-12345678")
        ledger.commit_timing("quick-12345678", "c" * 64, known[0].keys, "SUCCEEDED", [{**TIMING, "rounds": 11}], SAMPLES, None)
    with pytest.raises(Killed):
        write_all(home, Refusing())
    assert read.rows("quick", server.local_uri(home))[1] == known


def test_a_run_that_was_begun_and_whose_trial_waits_again_does_not_stay(home: Path) -> None:
    trials = enter_sweep(home, 2)
    with open_ledger(home) as ledger:
        assert ledger.lease(trials[1].key, "quick-12345678", "here") == 1
        ledger.end_attempt(trials[1].key, 1, "CRASHED", "signal 11", requeue=False, final_state="POISONED")
    client = server.connect(server.local_uri(home))
    with pytest.raises(Killed):
        write_all(home, CutOff(client, 13, after=True))
    (begun,) = trial_runs(client)
    assert begun.info.status == "RUNNING"
    with open_ledger(home) as ledger:
        assert ledger.retry_failed("quick-12345678") == 1
    assert drain(home, server.local_uri(home), Following()) == 0
    assert trial_runs(client) == []


def test_logs_of_a_failed_trial_are_artifacts_of_its_run(home: Path) -> None:
    trials = enter_sweep(home, 2)
    key = trials[1].key
    folder = home / "logs" / "trials"
    folder.mkdir(parents=True)
    (folder / f"{key}-1.log").write_text("about to crash\n")
    (folder / f"{key}.jsonl").write_text('{"event": "started"}\n')
    with open_ledger(home) as ledger:
        assert ledger.lease(key, "quick-12345678", "here") == 1
        ledger.end_attempt(key, 1, "CRASHED", "signal 11", requeue=False, final_state="POISONED")
    assert drain(home, server.local_uri(home), Following()) == 0
    client = server.connect(server.local_uri(home))
    (run,) = trial_runs(client)
    kept = {
        name: Path(client.download_artifacts(run.info.run_id, name, str(home))).read_text() for name in (names.LOG_TXT, names.LOG_JSONL)
    }
    assert kept == {"log.txt": "about to crash\n", "log.jsonl": '{"event": "started"}\n'}


def test_an_experiment_whose_artifacts_lie_on_the_web_is_refused(home: Path) -> None:
    filled_home(home, 1)
    server.connect(server.local_uri(home)).create_experiment("quick", artifact_location="http://169.254.169.254/latest")
    assert drain(home, server.local_uri(home), Following()) == 1
    with open_ledger(home) as ledger:
        assert all(item.attempts for item in ledger.outbox())


def test_a_sweep_runs_while_its_driver_lives_and_is_killed_when_the_driver_is_gone(home: Path) -> None:
    enter_sweep(home, 2)
    client = server.connect(server.local_uri(home))
    with SweepLock(home, "quick-12345678"):
        assert drain(home, server.local_uri(home), Following()) == 0
        (sweep,) = everything(client)["quick"]["runs"]
        assert (sweep["status"], sweep["tags"][names.STATE]) == ("RUNNING", "RUNNING")
    assert drain(home, server.local_uri(home), Following()) == 0
    (sweep,) = everything(client)["quick"]["runs"]
    assert (sweep["status"], sweep["tags"][names.STATE]) == ("KILLED", "INTERRUPTED")


def test_the_table_is_the_note_of_the_sweep_and_of_the_experiment(home: Path) -> None:
    filled_home(home, 2)
    long_table = TABLE + "| set | 0.9 |\n" * 2000
    with open_ledger(home) as ledger:
        ledger.enqueue("table", "quick-12345678", None, {"markdown": long_table})
    assert drain(home, server.local_uri(home), Following()) == 0
    client = server.connect(server.local_uri(home))
    experiment = client.get_experiment_by_name("quick")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`{names.KIND}` = 'sweep'")
    note = run.data.tags[names.NOTE]
    assert note.startswith(TABLE)
    assert len(note) <= 8000
    assert note.splitlines()[-1] == f"… cut: the whole table is the artifact `{names.TABLE_MD}`."
    assert experiment.tags[names.NOTE] == note
    assert Path(client.download_artifacts(run.info.run_id, names.TABLE_MD, str(home))).read_text() == long_table


def test_the_note_of_an_experiment_that_is_not_ours_stays(home: Path) -> None:
    full_home(home)
    client = server.connect(server.local_uri(home))
    theirs = client.create_experiment("quick", tags={names.NOTE: "mine"})
    assert drain(home, server.local_uri(home), Following()) == 0
    assert client.get_experiment(theirs).tags == {names.NOTE: "mine"}
    assert len(trial_runs(client)) == 2


def test_an_item_that_is_refused_stops_no_other(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    trials = filled_home(home, 2)
    client = server.connect(server.local_uri(home))
    with open_ledger(home) as ledger:
        ledger.enqueue("table", "quick-12345678", None, {})
        assert drain(home, server.local_uri(home), Following()) == 1
        (left,) = ledger.outbox()
    assert (left.kind, left.attempts) == ("table", 1)
    assert len(trial_runs(client)) == len(trials)
    assert "was refused: KeyError: 'markdown'" in caplog.text


def test_a_file_that_the_store_lost_is_named(home: Path) -> None:
    (trial,) = filled_home(home, 1)
    with open_ledger(home) as ledger:
        record = ledger.trial(trial.key).record
    assert record is not None
    lost = next(ref for ref in record["artifacts"] if ref["name"] == "masks.safetensors")["sha256"]
    (home / "artifacts" / lost[:2] / lost).unlink()
    assert drain(home, server.local_uri(home), Following()) == 0
    (run,) = trial_runs(server.connect(server.local_uri(home)))
    assert run.data.tags[names.MISSING] == "masks.safetensors"


@pytest.mark.slow
def test_killed_twice_midway_every_trial_is_there_once(home: Path) -> None:
    trials = filled_home(home, 12)
    client = server.connect(server.local_uri(home))
    for n_before_kill in (3, 7):
        process = spawn(home, server.local_uri(home))
        _until(lambda n=n_before_kill: len(trial_runs(client)) >= n, process)  # type: ignore[misc]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = upload(home)
    assert done.returncode == 0, done.stderr
    runs = trial_runs(client)
    assert sorted(run.data.tags[names.TRIAL_KEY] for run in runs) == sorted(trial.key for trial in trials)
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        assert run.data.metrics[names.ACCURACY] == next(0.9 + t.ordinal / 1000 for t in trials if t.key == run.data.tags[names.TRIAL_KEY])
        assert len(client.get_metric_history(run.info.run_id, "curve/lr")) == 30
    assert len(client.search_logged_models([runs[0].info.experiment_id])) == 12


@pytest.mark.slow
def test_it_follows_its_driver_finishes_when_asked_and_there_is_one_per_home(home: Path) -> None:
    trials = enter_sweep(home, 2)
    first, second = spawn(home), spawn(home)
    for trial in trials:
        commit(home, "quick-12345678", trial)
    assert finish(first, 60)
    assert finish(second, 60)
    assert len(trial_runs(server.connect(server.local_uri(home)))) == 2


def _until(true: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert process.poll() is None, "the uploader ended by itself"
        assert time.monotonic() < end, "nothing was uploaded"
        time.sleep(0.05)
