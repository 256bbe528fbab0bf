from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from cli_home import fill, spec

from sparsefleet.cli import progress
from sparsefleet.cli.labels import matches, trial_label
from sparsefleet.cli.progress import Lines, Snapshot, View, duration
from sparsefleet.errors import UserError


def view(done: int = 0, **more: int) -> View:
    one = View("demo")
    one.count({"done": done, "total": 10, "failed": 0, "diverged": 0, "cancelled": 0, **more})
    return one


def test_headline() -> None:
    one = view(3, failed=1)
    one.running["k"] = {"what": "x"}
    assert one.headline() == "3/10 done, 1 running, 1 failed"


def test_time_left_is_told_after_two_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    one = view(2)  # two were there before
    assert one.left_s is None
    clock[0] += 30
    one.count({"done": 5, "total": 10, "failed": 0, "diverged": 0, "cancelled": 0})
    assert one.left_s == 50.0  # 3 in 30 s, 5 to go
    assert "about 50 s left" in one.headline()


def test_running_lines_show_step_and_loss() -> None:
    one = view()
    one.running = {"k": {"what": "digits mlp set", "step": 1200, "total_steps": 4000, "loss": 0.31234}}
    assert one.running_lines() == ["digits mlp set   step 1,200/4,000   loss 0.3123"]
    one.running = {str(i): {"what": str(i)} for i in range(11)}
    assert one.running_lines()[-1] == "and 3 more"


def test_lines_are_bounded_in_rate_and_failures_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(every_s=1000)
    for done in range(5):
        one = view(done)
        one.failures = ["bad \x1b[31mluck"] if done >= 3 else []
        lines.show(one)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["demo: 0/10 done", "bad luck"]
    lines.show(view(9), urgent=True)
    assert capsys.readouterr().err == "demo: 9/10 done\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (45, "45 s"), (180, "3 min"), (5 * 3600 + 40 * 60, "5 h 40 min"), (19 * 86400, "19 days")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_snapshot_comes_back(tmp_path: Path) -> None:
    one = view()
    one.running = {"k": {"step": 3}}
    saved = Snapshot(tmp_path, "demo")
    saved.save(one)
    found = Snapshot(tmp_path, "demo").load()
    assert (found["running"], found["phase"], found["eta_s"]) == ({"k": {"step": 3}}, "", None)
    saved.remove()
    assert saved.load() == {}


def test_labels_and_patterns() -> None:
    body = spec(1, 0.1).to_json()
    assert trial_label(body) == "digits mlp set csr 0.1 seed 1"
    assert all(matches(p, body, "sparse", "abc") for p in ("set", "s*", "method=set,density=0.10", "seed=1", "arm=sparse", "spec_id=a*"))
    assert not any(matches(p, body, "sparse", "abc") for p in ("rigl", "set,seed=2", "layer=masked", "density=0.2"))
    with pytest.raises(UserError, match="unknown field"):
        matches("metod=set", body, "sparse", "abc")


def test_labels_name_the_connectivity_and_parameters_that_tell_trials_apart() -> None:
    blocks = {"connectivity": {"name": "blocks", "params": {"size": 8}}, "layer": {"name": "block", "params": {"size": 4}}}
    body = {**spec(1, 0.1).to_json(), **blocks}
    assert trial_label(body) == "digits mlp set block(size=4) blocks(size=8) 0.1 seed 1"
    assert matches("connectivity=bl*", body, "sparse", "abc")
    assert not matches("connectivity=rows", body, "sparse", "abc")


def test_labels_agree_with_the_specs_own() -> None:
    from sparsefleet.cli.labels import method_label

    methods = [{"rewirer": {"name": "rigl"}}, {"pruner": {"name": "magnitude"}, "schedule": {"kind": "cubic"}, "distribution": "global"}]
    for method in [*methods, {"pruner": {"name": "random"}}]:
        one = spec(0, 0.1, method=method)
        assert method_label(one.to_json()) == one.method.label


def test_a_feed_counts_by_the_ledger_and_steps_by_the_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sparsefleet.cli.events import Feed
    from sparsefleet.fleet.events import Event
    from sparsefleet.ledger import SweepLock, open_ledger, read_ledger

    sweep = fill(tmp_path)
    ledger = read_ledger(tmp_path)
    published: list[int] = []
    feed = Feed(tmp_path, ledger.sweep(sweep), ledger, lambda: published.append(1))
    key = next(ledger.trials(sweep)).key
    feed.take(Event("trial", {"key": key, "state": "RUNNING"}))
    feed.take(Event("progress", {"key": key, "step": 5, "total_steps": 9, "loss": 0.5}))
    assert Snapshot(tmp_path, sweep).load()["running"][key]["what"] == "digits mlp dense dense 1 seed 0"
    feed.take(Event("trial", {"key": key, "state": "TIMEOUT", "reason": "killed after 2 s\nmore"}))
    with SweepLock(tmp_path, sweep), open_ledger(tmp_path) as writing:
        writing.set_sweep_state(sweep, "MEASURING")
        feed.take(Event("upload", {"waiting": 3}))
        assert published == []  # the timings are still to come
        writing.set_sweep_state(sweep, "DONE")
        feed.take(Event("upload", {"waiting": 1}))
        assert published == [1]
        assert "TIMEOUT: killed after 2 s\n" in capsys.readouterr().err  # the display has ended: the table stands below it
        feed.take(Event("upload", {"waiting": 7}))
        feed.take(Event("note", {"text": "7 items wait"}))
        feed.take(Event("upload", {"waiting": 0}))
    feed.close()
    assert published == [1]
    said = capsys.readouterr().err
    assert said == "uploading 7 to MLflow; Ctrl-C leaves it to the background\n7 items wait\n"
    assert not list((tmp_path / "logs").glob("*.progress.json"))


def test_what_a_watcher_reads_is_what_the_driver_shows() -> None:
    ours = view(3)
    ours.phase, ours.eta_s = "measuring 1/4, then 1 again", 95.0
    ours.nodes = [
        {"node": "a", "state": "alive", "slots": 2, "busy": 1, "cpus": 4, "cpus_used": 2, "gpus": 1, "gpus_used": 0.5, "trials": []}
    ]
    ours.waiting = [{"why": "no node has 2 gpus", "n": 7, "keys": []}]
    ours.finished = [f"row {i}" for i in range(60)]
    theirs = view(3)
    theirs.take_json(ours.to_json())
    assert theirs.headline() == ours.headline() == "3/10 done, about 2 min left; measuring 1/4, then 1 again"
    assert theirs.fleet_lines() == ["a: 1 of 2 slots busy, 2 of 4 cpus, 0.5 of 1 gpus", "7 wait: no node has 2 gpus"]
    assert theirs.finished[-1] == "row 59"
    theirs.take_json(ours.to_json())
    assert len(theirs.finished) == 60  # nothing twice


def test_lines_tell_of_a_phase_that_gets_on_and_not_of_its_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(every_s=0)
    for eta, phase in ((9.0, "measuring 1/4"), (8.0, "measuring 1/4"), (7.0, "measuring 2/4")):
        one = view(10)
        one.eta_s, one.phase = eta, phase
        lines.show(one)
    told = capsys.readouterr().err.splitlines()
    assert told == ["demo: 10/10 done, about 9 s left; measuring 1/4", "demo: 10/10 done, about 7 s left; measuring 2/4"]


def test_time_left_counts_every_arm_by_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsefleet.cli import pace
    from sparsefleet.ledger.rows import TrialRow

    clock = [100.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: clock[0])
    arms = (("dense", 1.0), ("sparse", 0.1))
    trials = [TrialRow(0, f"{arm}{seed}", "id", spec(seed, density).to_json(), arm) for seed in range(3) for arm, density in arms]
    one = pace.TrialPace(trials)
    assert one.left_s(2) is None
    one.known([("dense0", 10.0)])
    assert one.left_s(2) == (3 * 10 + 3 * 10) / 2  # nothing sparse has finished
    clock[0] += 20
    assert one.ended("dense0", "SUCCEEDED", 10.0) is None
    assert one.ended("sparse0", "SUCCEEDED", 30.0) is None
    assert one.left_s() == (2 * 10 + 2 * 30) / (40 / 20)  # two at once, by this driver's own time
    one.stepped("sparse1", 0.5)
    assert one.left_s() == (2 * 10 + 1.5 * 30) / 2
    assert one.ended("dense1", "TIMEOUT", 10.0) is None
    row = one.ended("dense2", "SUCCEEDED", 10.0)
    assert row is not None
    assert (row.label, row.keys) == ("digits mlp dense dense 1", ["dense0", "dense1", "dense2"])
    assert one.n_measures({"level": "screen"}) == 2
    assert one.n_measures({"level": "publish", "ops": ["step"], "batch_sizes": [1, 2, 3]}) == 3
    assert one.n_measures({"level": "none"}) == 0


def test_measuring_announces_its_second_round_and_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsefleet.cli import pace

    clock = [0.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: clock[0])
    one = pace.MeasurePace(20.0)
    assert one.take({"state": "RUNNING", "done": 0, "total": 2}) == ("measuring 0/2", 40.0, "measuring 2 configurations, one at a time")
    clock[0] = 10.0
    told = one.take({"state": "SUCCEEDED", "done": 1, "total": 2, "verdict": "NOT_TRUSTWORTHY"})
    assert told == ("measuring 1/2, then 1 again", 20.0, "")  # ten seconds each, one left and one again
    clock[0] = 20.0
    one.take({"state": "SUCCEEDED", "done": 2, "total": 2, "verdict": "FASTER"})
    told = one.take({"state": "RUNNING", "done": 0, "total": 1, "again": True})
    assert told == ("measuring again 0/1", 10.0, "measuring 1 configuration once more: not trustworthy the first time")


def test_a_row_is_told_when_its_last_trial_has_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sparsefleet.cli.events import Feed
    from sparsefleet.fleet.events import Event
    from sparsefleet.ledger import SweepLock, open_ledger, read_ledger

    sweep = fill(tmp_path)
    with open_ledger(tmp_path) as writing, SweepLock(tmp_path, sweep):
        reading = read_ledger(tmp_path)
        feed = Feed(tmp_path, reading.sweep(sweep), reading, lambda: None)
        for n, trial in enumerate(t for t in reading.trials(sweep) if t.arm == "sparse"):
            writing.commit(trial.key, writing.lease(trial.key, sweep, "n"), {"state": "SUCCEEDED", "accuracy": {"test": 0.5 + n / 10}})
            feed.take(Event("trial", {"key": trial.key, "state": "SUCCEEDED", "wall_s": 1.0}))
        feed.take(Event("fleet", {"nodes": [{"node": "a", "slots": 1, "busy": 0, "cpus": 1}], "waiting": [{"why": "asleep", "n": 2}]}))
        assert "digits mlp set csr 0.1: test 0.550 [0.500, 0.600] (n=2)\n" in capsys.readouterr().err
        from sparsefleet.cli.sweeps import progress_of

        feed._snapshot._last = -10.0
        feed.take(Event("note", {"text": "something"}))
        found = progress_of(reading.sweep(sweep), tmp_path)
        assert found is not None
        assert found["waiting"] == [{"why": "asleep", "n": 2}]
        assert found["finished"] == ["digits mlp set csr 0.1: test 0.550 [0.500, 0.600] (n=2)"]
        feed.close()
    assert progress_of(reading.sweep(sweep), tmp_path) is None


def test_a_row_with_a_damaged_record_is_told_of_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sparsefleet.cli.events import Feed
    from sparsefleet.fleet.events import Event
    from sparsefleet.ledger import SweepLock, open_ledger, read_ledger

    sweep = fill(tmp_path)
    with open_ledger(tmp_path) as writing, SweepLock(tmp_path, sweep):
        reading = read_ledger(tmp_path)
        feed = Feed(tmp_path, reading.sweep(sweep), reading, lambda: None)
        for trial in [t for t in reading.trials(sweep) if t.arm == "sparse"]:
            writing.commit(trial.key, writing.lease(trial.key, sweep, "n"), {"state": "SUCCEEDED", "accuracy": {"test": 0.5}})
        with sqlite3.connect(tmp_path / "ledger.db") as db:
            db.execute("UPDATE records SET body=zeroblob(100)")
        for trial in [t for t in reading.trials(sweep, with_record=False) if t.arm == "sparse"]:
            feed.take(Event("trial", {"key": trial.key, "state": "SUCCEEDED", "wall_s": 1.0}))
        feed.take(Event("fleet", {"nodes": [], "waiting": []}))
        assert "does not match its digest; sparsefleet resume runs that trial again" in capsys.readouterr().err
        feed.close()
