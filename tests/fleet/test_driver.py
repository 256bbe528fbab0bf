"""Whole sweeps through Ray: bad plugins beside good ones, deaths, interruptions, and what is never done twice."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from fleet_sweeps import Told, enter, read_until, settings, start_driver

from sparsefleet.errors import SweepLocked, VersionSkew
from sparsefleet.fleet.driver import cancel, submit
from sparsefleet.fleet.measuring import MeasurePhase
from sparsefleet.ledger import Ledger, TrialRow, is_held, open_ledger
from sparsefleet.ledger.packed import dump
from sparsefleet.trial.files import MODEL

pytestmark = [pytest.mark.ray, pytest.mark.timeout(280)]

NASTY = """
    import ctypes, os, signal, sys, time
    import sparsefleet
    from sparsefleet import Rewirer, hookimpl

    class Unpicklable(Exception):
        def __reduce__(self):
            raise RuntimeError("never")

    def ends(how):
        if how == "raise":
            raise Unpicklable("the idea was wrong")
        if how == "exit":
            sys.exit(0)
        if how == "os-exit":
            os._exit(0)
        if how == "segfault":
            ctypes.string_at(0)
        if how == "hang":
            while True:
                try:
                    time.sleep(60)
                except BaseException:
                    pass
        if how == "poison":
            import torch
            torch.set_default_dtype(torch.float64)
            torch.nn.functional.relu = None

    class Nasty(Rewirer):
        name = "nasty"
        how: str = "raise"

        def due(self, progress):
            if progress.step == 2:
                ends(self.how)
            return False

    class Slow(Rewirer):
        name = "slow"
        step_s: float = 0.01

        def on_step(self, conn, lr, rng):
            time.sleep(self.step_s)

    @hookimpl
    def sparsefleet_rewirers():
        return [Nasty, Slow]
"""

ONE_EPOCH = "train: {epochs: 1, batch_size: 128}\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    (home / "data").mkdir(parents=True)
    monkeypatch.setenv("SPARSEFLEET_HOME", str(home))
    return home


@pytest.fixture
def ledger(home: Path) -> Ledger:
    with open_ledger(home) as ledger:
        yield ledger


@pytest.fixture
def nasty(plugin_distribution) -> None:
    plugin_distribution("nasty-plugins", {"nasty_plugins": NASTY})


def by_method(ledger: Ledger, sweep: str) -> dict[str, TrialRow]:
    found = {}
    for row in ledger.trials(sweep):
        rewirer = row.spec["method"]["rewirer"]
        found[rewirer["params"].get("how", rewirer["name"]) if rewirer else row.arm] = row
    return found


def digests(row: TrialRow, *names: str) -> dict[str, str]:
    return {a["name"]: a["sha256"] for a in row.record["artifacts"] if a["name"] in names or not names}


def test_bad_plugins_are_their_own_problem(home: Path, ledger: Ledger, nasty: None) -> None:
    methods = "\n".join(
        f"    - {{rewirer: {{nasty: {{how: {how}}}}}}}" for how in ("raise", "exit", "os-exit", "segfault", "hang", "poison")
    )
    text = f"name: nasty\n{ONE_EPOCH}limits: {{timeout_s: 12}}\nseeds: [0]\naxes:\n  density: [0.2]\n  method:\n{methods}\n    - {{rewirer: set}}\n    - {{pruner: magnitude, start: twin}}\n"
    sweep, told = enter(home, text), Told()
    row = submit(home, sweep, settings(home), told)
    assert row.state == "FAILED"
    found = by_method(ledger, sweep)
    states = {name: trial.state for name, trial in found.items()}
    assert states == {
        "dense": "SUCCEEDED",
        "raise": "PLUGIN_ERROR",
        "exit": "POISONED",
        "os-exit": "POISONED",
        "segfault": "POISONED",
        "hang": "TIMEOUT",
        "poison": "PLUGIN_ERROR",
        "set": "SUCCEEDED",
        "sparse": "SUCCEEDED",
    }
    assert "the idea was wrong" in found["raise"].reason
    assert "SIGSEGV" in found["segfault"].reason
    assert [a["end"] for a in found["segfault"].attempts] == ["CRASHED", "CRASHED"]
    assert [a["end"] for a in found["hang"].attempts] == ["TIMEOUT"]
    order = [e.data["key"] for e in told.events if e.kind == "trial" and e.data["state"] == "RUNNING"]
    assert order.index(found["dense"].key) < order.index(found["sparse"].key)  # the twin first: the other starts from its weights
    assert found["sparse"].depends_on == found["dense"].key
    names = set(digests(found["set"]))
    assert {"model.safetensors", "masks.safetensors", "manifest.json", "spec.json", "environment.json"} <= names
    assert not [name for name in names if name.startswith(("checkpoint", ".", "record", "start"))]
    assert not list((home / "work").glob("*/model.safetensors")) or len(list((home / "work").iterdir())) < 9
    assert row.counts["total"] == sum(n for state, n in row.counts.items() if state not in ("total", "cached"))

    again = submit(home, sweep, settings(home), told := Told())
    assert again == ledger.sweep(sweep)
    assert told.events == []
    assert no_children_of_ours()


def test_a_finished_sweep_starts_neither_ray_nor_torch(home: Path, ledger: Ledger) -> None:
    sweep = enter(home, f"name: done\n{ONE_EPOCH}seeds: [0]\naxes: {{density: [0.2], method: [{{rewirer: set}}]}}\n")
    driver = start_driver(home, sweep)
    assert read_until(driver, "end")["state"] == "DONE"
    driver.wait()
    n_attempts = [row.attempt for row in ledger.trials(sweep)]
    begun = time.monotonic()
    driver = start_driver(home, sweep)
    end = read_until(driver, "end")
    driver.wait()
    assert time.monotonic() - begun < 5.0
    assert (end["state"], end["modules"]) == ("DONE", [])
    assert [row.attempt for row in ledger.trials(sweep)] == n_attempts


def test_a_stopped_trial_goes_on_from_its_checkpoint_to_the_same_bits(home: Path, ledger: Ledger, nasty: None, digits_request) -> None:
    from sparsefleet.trial.run import run_trial
    from sparsefleet.trial.spec import TrialSpec

    slow = "{rewirer: {slow: {step_s: 0.02, every: 5}}}"
    text = f"name: stop\ntrain: {{epochs: 8, batch_size: 64}}\nlimits: {{checkpoint_every_s: 0.3}}\nseeds: [0]\naxes: {{density: [0.2], method: [{slow}]}}\n"
    sweep = enter(home, text)
    key = next(row.key for row in ledger.trials(sweep) if row.arm == "sparse")

    driver = start_driver(home, sweep)  # killed outright: nobody can tidy up
    while read_until(driver, "progress", key=key)["step"] < 40:
        continue
    child_gone_with(driver, signal.SIGKILL)
    assert ledger.sweep(sweep).state == "INTERRUPTED"
    assert ledger.trial(key).state == "PENDING"
    assert not is_held(home, sweep)

    driver = start_driver(home, sweep)  # asked to stop: drains for some seconds, which are too few
    while read_until(driver, "progress", key=key)["step"] < 90:
        continue
    tree = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGINT)
    time.sleep(0.3)
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=12)
    assert ledger.sweep(sweep).state == "INTERRUPTED"
    psutil.wait_procs(tree, timeout=30)  # a work folder whose last user still dies is not shared, and the next would begin anew

    driver = start_driver(home, sweep)
    first = read_until(driver, "progress", key=key)["step"]
    assert first > 40  # not from the beginning
    assert read_until(driver, "end")["state"] == "DONE"
    driver.wait()
    row = ledger.trial(key)
    assert [a["end"] for a in row.attempts] == ["INTERRUPTED", "INTERRUPTED", "SUCCEEDED"]
    assert [a["n"] for a in row.record["attempts_log"]] == [1, 2, 3]

    request = digits_request("straight")
    whole = run_trial(request.model_copy(update={"spec": TrialSpec.model_validate(row.spec)}))
    straight = {
        name: __import__("hashlib").sha256((request.workdir / name).read_bytes()).hexdigest()
        for name in ("model.safetensors", "masks.safetensors")
    }
    assert digests(row, *straight) == straight
    assert row.record["accuracy"] == whole.to_json()["accuracy"]
    assert row.record["curves"] == whole.to_json()["curves"]


def test_cancel_then_resume(home: Path, ledger: Ledger, nasty: None) -> None:
    text = f"name: cancel\n{ONE_EPOCH}seeds: 6\naxes: {{density: [0.2], method: [{{rewirer: {{slow: {{step_s: 0.1}}}}}}]}}\n"
    sweep = enter(home, text)
    driver = start_driver(home, sweep)
    read_until(driver, "trial", state="RUNNING")
    with pytest.raises(SweepLocked, match="sparsefleet watch"):
        submit(home, sweep, settings(home), Told())
    assert cancel(home, sweep)
    assert read_until(driver, "end")["state"] == "CANCELLED"
    driver.wait()
    counts = ledger.sweep(sweep).counts
    assert counts["CANCELLED"] > 0
    assert counts.get("RUNNING", 0) + counts.get("PENDING", 0) + counts.get("LEASED", 0) == 0
    assert no_children_of_ours()
    row = submit(home, sweep, settings(home), Told())
    assert (row.state, row.counts["SUCCEEDED"]) == ("DONE", row.counts["total"])
    assert not cancel(home, sweep)
    assert ledger.sweep(sweep).state == "DONE"


def test_the_first_failing_alike_pause_the_sweep(home: Path, ledger: Ledger, nasty: None) -> None:
    text = f"name: alike\n{ONE_EPOCH}seeds: 22\nvalidation: 0\naxes: {{density: [0.2], method: [{{rewirer: nasty}}]}}\n"
    sweep = enter(home, text)
    with ledger.batch():  # the twins are there already
        for row in ledger.trials(sweep):
            if row.arm == "dense":
                attempt = ledger.lease(row.key, sweep, "n")
                ledger.commit(row.key, attempt, {"state": "SUCCEEDED", "reason": None})
    told = Told()
    row = submit(home, sweep, settings(home), told)
    assert row.state == "FAILED"
    assert row.counts["PLUGIN_ERROR"] < 22
    assert row.counts["PENDING"] > 0
    [note] = [e.data["text"] for e in told.events if e.kind == "note" and "the idea was wrong" in e.data["text"]]
    assert f"sparsefleet resume {sweep} --failed" in note
    assert "(in rewirer/nasty of nasty-plugins 1.0)" in note
    row = submit(home, sweep, settings(home), Told())  # who goes on all the same has seen it
    assert (row.state, row.counts["PLUGIN_ERROR"], row.counts.get("PENDING", 0)) == ("FAILED", 22, 0)


def test_other_code_on_a_node_is_refused_before_anything_runs(home: Path, ledger: Ledger) -> None:
    sweep = enter(home, f"name: skew\n{ONE_EPOCH}seeds: [0]\naxes: {{density: [0.2], method: [{{rewirer: set}}]}}\n")
    with ledger.batch():
        for row in list(ledger.trials(sweep)):
            other = ledger._texts.number(dump({**row.request, "code": {**row.request["code"], "rewirer/set": "abcdef"}}))
            ledger._db.execute("UPDATE sweep_trials SET request=? WHERE key=?", (other, row.key))
    with pytest.raises(VersionSkew, match=r"runs other code than the sweep was submitted with: rewirer/set") as caught:
        submit(home, sweep, settings(home), Told())
    assert caught.value.exit_code == 3
    assert caught.value.differences["rewirer/set"][0] == "sparsefleet 0.1.0 (abcdef)"
    assert {(row.state, row.attempt) for row in ledger.trials(sweep)} == {("PENDING", 0)}


def test_a_network_that_is_damaged_before_its_timing_is_trained_again(home: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the driver has looked at all of them: the node finds out. Nothing is entered for it but the timing of the new one."""
    sweep = enter(home, f"name: altered\n{ONE_EPOCH}seeds: [0]\naxes: {{density: [0.2], method: [{{rewirer: static, layer: csr}}]}}\n")
    key = next(row.key for row in ledger.trials(sweep) if row.spec["density"] == 0.2)
    begin, phases = MeasurePhase._measure, []

    def alter_once(phase: MeasurePhase) -> None:
        phases.append(phase)
        if len(phases) == 1:
            digest = digests(ledger.trial(key), MODEL)[MODEL]
            (path,) = (home / "artifacts").rglob(digest)
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        begin(phase)

    monkeypatch.setattr(MeasurePhase, "_measure", alter_once)
    told = Told()
    asked = {"level": "screen", "batch_sizes": [64], "ops": ["forward"], "baselines": ["dense_eager"]}
    assert submit(home, sweep, settings(home, measure=asked, cpus=1), told).state == "DONE"
    assert [attempt["end"] for attempt in ledger.trial(key).attempts] == ["DAMAGED", "SUCCEEDED"]
    assert [row.state for row in ledger.timings(sweep)] == ["SUCCEEDED"]
    assert any("does not match its digest: it runs again" in event.data["text"] for event in told.events if event.kind == "note")


def child_gone_with(driver: subprocess.Popen[str], number: int) -> None:
    """Signals the driver; the trial's child must not outlive it for long."""
    tree = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(number)
    driver.wait()
    _, alive = psutil.wait_procs([p for p in tree if p.name().startswith("ray::Supervisor")], timeout=15)
    assert not alive


def is_fork_server(process: psutil.Process) -> bool:
    try:
        return "forkserver" in " ".join(process.cmdline() or [])
    except psutil.NoSuchProcess:  # it ended while it was looked at
        return False


def no_children_of_ours() -> bool:
    """True if neither this process nor anyone else still runs a fork server of this home."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        left = [p for p in psutil.Process().children(recursive=True) if is_fork_server(p)]
        if not left:
            return True
        time.sleep(0.1)
    return False
