"""A trial's time limit is its child's: a slow store takes as long as it takes, while its supervisor gives signs of life."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fleet_wire import CPU, Ref, node

from sparsefleet.fleet import supervisor
from sparsefleet.fleet.outcome import RESULT
from sparsefleet.fleet.slots import Assignment
from sparsefleet.fleet.supervisor import Supervisor
from sparsefleet.ledger.store import ArtifactStore


class Words(Ref):
    """What a supervisor says of one job, as it says it."""

    value = True

    def __init__(self) -> None:
        self.said: dict[str, Any] | None = None

    def __next__(self) -> Ref:
        word = Ref()
        word.value = self.said
        return word


@pytest.mark.parametrize(("storing", "end"), [(True, "ended"), (False, "lost")])
def test_a_result_that_is_stored_slowly_is_not_thrown_away(wire: Any, storing: bool, end: str) -> None:
    """A trial of 55 s with a limit of 60 s whose files take 45 s to store; without the word that its child has ended it is overdue."""
    w, words = wire(node("a")), Words()
    w.adjust({CPU: 1})
    (slot,) = w.pool.slots
    w.up(slot, "a")
    slot.heard = w.now
    slot.jobs.append(Assignment({"key": "k" * 64, "attempt": 1, "timeout_s": 60}, words))
    heard = []
    for second in range(0, 101, 5):
        kind = "started" if second == 0 else "storing" if second == 55 and storing else "ended" if second == 100 else "beat"
        words.said = {"kind": kind}
        heard += [message.kind for message in w.pool.hear(0.0)]
        w.now += 5
        if not slot.jobs or slot not in w.pool.slots:
            break
    assert heard[-1] == end


class Child:
    """In place of the fork server: a child that ends at once, with a record and a file."""

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir

    def run(self, job: dict[str, Any], beat_s: float) -> Any:
        yield "s", {"pid": 1}
        (self.workdir / "model.safetensors").write_bytes(b"net")
        yield "r", {"state": "SUCCEEDED"}
        yield "o", {"timed_out": False, "wall_s": 1.0, "peak_mib": 1.0, "code": 0}


class SlowStore(ArtifactStore):
    def put_all(self, files: Any) -> Any:
        time.sleep(0.5)
        return super().put_all(files)


def test_the_supervisor_says_when_the_childs_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "BEAT_S", 0.05)
    one = Supervisor.__new__(Supervisor)  # without the watch of Ray's head
    one._root, one._forwards, one._turn = tmp_path, False, threading.Lock()
    one._store = SlowStore(str(tmp_path / "store"), tmp_path / "spool")
    workdir = tmp_path / "work" / "k"
    workdir.mkdir(parents=True)
    monkeypatch.setattr(one, "_fork_server", lambda: Child(workdir))
    log = supervisor.log_path(tmp_path, "k", 1)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    job = {"key": "k", "attempt": 1, "fetch": {}, "request": {"data_root": str(tmp_path)}}
    said = list(one.run(json.dumps(job)))
    kinds = [body["kind"] for body in said]
    first = kinds.index("storing")
    assert (kinds[first - 1], set(kinds[first + 1 : -1]), kinds[-1]) == ("started", {"beat"}, "ended")
    assert said[-1]["end"] == RESULT
    assert [ref["name"] for ref in said[-1]["record"]["artifacts"]] == ["model.safetensors"]
