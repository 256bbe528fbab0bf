"""Pictures in MLflow: drawn once, within bounds, and never a reason for anything else to fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from track_homes import filled_home
from track_state import trial_runs

from sparsefleet.fleet.uploader import _awaited
from sparsefleet.ledger import open_ledger
from sparsefleet.ledger.rows import SweepTrial
from sparsefleet.ledger.store import ArtifactStore
from sparsefleet.report.upload import Pictures
from sparsefleet.track import names, pictures, server
from sparsefleet.track.upload import Following, drain

SWEEP = "real-12345678"


@pytest.fixture(autouse=True)
def _drawn(monkeypatch):
    monkeypatch.delenv("SPARSEFLEET_PICTURES")


@pytest.fixture
def real_home(home: Path, digits_request) -> Path:
    """A home with one trial that really ran, uploaded, and a wish for its pictures."""
    from sparsefleet.trial.run import run_trial

    request = digits_request(layer={"name": "csr"}, density=0.2, method={"rewirer": {"name": "set", "params": {"every": 10}}})
    record = run_trial(request).to_json()
    key = str(record["trial_key"])
    store = ArtifactStore((home / "artifacts").as_uri())
    paths = sorted(path for path in request.workdir.rglob("*") if path.is_file())
    record["artifacts"] = [store.put(path, path.relative_to(request.workdir).as_posix()).to_json() for path in paths]
    with open_ledger(home) as ledger:
        trial = SweepTrial(0, key, str(record["spec_id"]), dict(record["spec"]), "sparse")
        ledger.create_sweep(SWEEP, "real", SWEEP, "name: real\n", {}, [trial])
        attempt = ledger.lease(key, SWEEP, "here")
        assert attempt is not None
        assert ledger.commit(key, attempt, json.loads(json.dumps(record)))
        ledger.set_sweep_state(SWEEP, "DONE")
        ledger.enqueue("pictures", SWEEP, None, {})
    return home


def drawn(client, run_id: str) -> dict[str, int]:
    return {Path(file.path).name: file.file_size for file in client.list_artifacts(run_id, names.PICTURE_FOLDER)}


def test_the_pictures_of_a_trial_and_of_its_sweep_are_artifacts_once(real_home: Path) -> None:
    uri = server.local_uri(real_home)
    assert drain(real_home, uri, Following(), Pictures()) == 0
    client = server.connect(uri)
    (run,) = trial_runs(client)
    found = drawn(client, run.info.run_id)
    assert set(found) == {"masks.png", "weights.png", "histograms.png", "evolution.png", "curves.png", "density.png"}
    assert run.data.tags[names.PICTURES] == f"6 pictures, {sum(found.values())} bytes"
    assert sum(found.values()) <= pictures.MOST_BYTES
    parent = run.data.tags[names.PARENT]
    assert set(drawn(client, parent)) == {"accuracy.png", "curves.png", "patterns.png"}
    assert run.info.status == "FINISHED"

    class Never:
        def trial(self, row, store, folder):
            raise AssertionError("drawn twice")

        sweep = trial

    with open_ledger(real_home) as ledger:
        ledger.enqueue("pictures", SWEEP, None, {})
    assert drain(real_home, uri, Following(), Never()) == 0


def test_what_cannot_be_drawn_is_named_and_stops_nothing(home: Path) -> None:
    """The files of these trials are no network's: masks can be drawn, weights cannot."""
    trials = filled_home(home, 2)
    with open_ledger(home) as ledger:
        ledger.enqueue("pictures", "quick-12345678", None, {})
    assert drain(home, server.local_uri(home), Following(), Pictures()) == 0
    runs = trial_runs(server.connect(server.local_uri(home)))
    assert len(runs) == len(trials)
    assert all("Error" in run.data.tags[names.PICTURES] for run in runs)
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_what_is_over_the_bound_is_left_out_and_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Big:
        def trial(self, row, store, folder):
            yield from ((f"{i}.png", b"x" * 400) for i in range(5))

        def sweep(self, ledger, sweep, store, folder):
            return iter(())

    monkeypatch.setattr(pictures, "MOST_BYTES", 1000)
    monkeypatch.setattr(pictures, "MOST_TRIALS", 1)
    filled_home(home, 2)
    with open_ledger(home) as ledger:
        ledger.enqueue("pictures", "quick-12345678", None, {})
    assert drain(home, server.local_uri(home), Following(), Big()) == 0
    client = server.connect(server.local_uri(home))
    told = [run.data.tags.get(names.PICTURES) for run in trial_runs(client)]
    assert sorted(told, key=str) == sorted(["2 pictures, 800 bytes; the rest is over 0 MiB", None], key=str)


def test_a_slice_of_time_is_followed_by_the_rest(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Small:
        def trial(self, row, store, folder):
            yield "a.png", b"x"

        def sweep(self, ledger, sweep, store, folder):
            return iter(())

    monkeypatch.setattr(pictures, "_SLICE_S", 0.0)
    written: list[bool] = []
    some = pictures.PictureWriter.write_some

    def one_at_a_time(self, sweep, parent):
        monkeypatch.setattr(pictures, "_SLICE_S", 0.0 if len(written) < 2 else 60.0)
        written.append(some(self, sweep, parent))
        return written[-1]

    monkeypatch.setattr(pictures.PictureWriter, "write_some", one_at_a_time)
    filled_home(home, 2)
    with open_ledger(home) as ledger:
        ledger.enqueue("pictures", "quick-12345678", None, {})
        assert drain(home, server.local_uri(home), Following(), Small()) == 0
        assert not ledger.outbox_size()
    assert written == [False, False, True]
    client = server.connect(server.local_uri(home))
    assert [run.data.tags[names.PICTURES] for run in trial_runs(client)] == ["1 pictures, 1 bytes"] * 2


def test_nobody_waits_for_pictures_and_an_uploader_that_cannot_draw_leaves_them(home: Path) -> None:
    filled_home(home, 2)
    with open_ledger(home) as ledger:
        waiting = ledger.outbox_size()
        ledger.enqueue("pictures", "quick-12345678", None, {})
        assert (_awaited(ledger), ledger.outbox_size()) == (waiting, waiting + 1)
        assert drain(home, server.local_uri(home), Following()) == 1
        (left,) = ledger.outbox()
        assert left.kind == "pictures"
        assert _awaited(ledger) == 0


def test_pictures_wait_until_the_driver_is_gone(home: Path) -> None:
    from sparsefleet.track.upload import _Uploader

    filled_home(home, 2)
    with open_ledger(home) as ledger:
        ledger.enqueue("pictures", "quick-12345678", None, {})
        _Uploader(home, server.local_uri(home), ledger, Pictures(), lambda: False).pass_on(last=False)
        assert [item.kind for item in ledger.outbox()] == ["pictures"]


def test_no_picture_is_drawn_while_something_is_measured():
    """The uploader of a finished sweep may still draw when the next one is timed."""
    import threading

    from sparsefleet.measure.lease import device_lease
    from sparsefleet.report.upload import _beside_measuring

    drawn = []
    pictures = _beside_measuring(iter([("a.png", b"1"), ("b.png", b"2")]))
    thread = threading.Thread(target=lambda: drawn.extend(pictures))
    with device_lease("cpu", 60):
        thread.start()
        thread.join(0.5)
        assert drawn == []
    thread.join(60)
    assert drawn == [("a.png", b"1"), ("b.png", b"2")]
