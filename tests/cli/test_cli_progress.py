from __future__ import annotations

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
    assert Snapshot(tmp_path, "demo").load() == {"running": {"k": {"step": 3}}, "phase": ""}
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
        feed.take(Event("upload", {"waiting": 0}))
    feed.close()
    assert published == [1]
    assert "TIMEOUT: killed after 2 s\n" in capsys.readouterr().err
    assert not list((tmp_path / "logs").glob("*.progress.json"))
