"""Results that come too late, and folders that somebody else holds: the driver's loop fed with words of supervisors, on a real ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fleet_sweeps import Told

from sparsefleet.fleet.events import DriverSettings
from sparsefleet.fleet.history import read_history
from sparsefleet.fleet.outcome import BUSY, RESULT
from sparsefleet.fleet.phase import TrialPhase
from sparsefleet.fleet.shape import Shape
from sparsefleet.fleet.slots import Message, Slot
from sparsefleet.ledger import Ledger


def slot(node: str) -> Slot:
    return Slot(Shape(1, 0), None, None, None, 0.0, node=node, ready=True)


def ended(end: str, record: dict[str, Any] | None = None, reason: str = "") -> dict[str, Any]:
    return {"kind": "ended", "end": end, "reason": reason, "record": record, "wall_s": 1.0, "peak_mib": 1.0}


@pytest.fixture
def again(ledger: Ledger) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The fixture's trial as if it had not run: its key, its record and the job of a first attempt."""
    row = next(iter(ledger.trials("a-1")))
    assert row.record is not None
    ledger._db.execute("UPDATE trials SET state='PENDING', record=NULL, record_sha256=NULL, attempt=0 WHERE key=?", (row.key,))
    ledger._db.execute("DELETE FROM attempts")
    return row.key, row.record, {"key": row.key, "attempt": 1}


def stored(ledger: Ledger) -> tuple[str, str | None]:
    """State and record as they stand in the file, whether or not a driver holds the sweep."""
    (found,) = ledger._db.execute("SELECT state, record FROM trials").fetchall()
    return found["state"], found["record"]


def phase(ledger: Ledger, told: Told) -> TrialPhase:
    return TrialPhase(ledger, "a-1", None, DriverSettings(data_root=Path("data")), None, told)


def test_a_result_of_an_attempt_that_was_given_up_is_refused_and_told(ledger: Ledger, again: Any) -> None:
    key, record, job = again
    told = Told()
    loop = phase(ledger, told)
    assert ledger.lease(key, "a-1", "frozen") == 1
    loop._hear(Message(slot("frozen"), job, "started", {"kind": "started"}))
    loop._hear(Message(slot("frozen"), job, "lost", {"reason": "no sign of life for 30 s", "ran": True}))
    assert ledger.trial(key).state == "PENDING"
    loop._hear(Message(slot("frozen"), job, "late", ended(RESULT, record)))  # before anybody has taken it up
    assert stored(ledger) == ("PENDING", None)
    assert ledger.lease(key, "a-1", "other") == 2
    assert ledger.mark_running(key, 2, "other")
    loop._hear(Message(slot("frozen"), job, "late", ended(RESULT, record)))  # while another attempt runs
    assert stored(ledger) == ("RUNNING", None)
    assert [(line["event"], line["attempt"]) for line in read_history(ledger.home, key)] == [
        ("started", 1),
        ("lost", 1),
        ("late", 1),
        ("late", 1),
    ]
    notes = [event.data["text"] for event in told.events if event.kind == "note"]
    assert len(notes) == 2
    assert "frozen brought a result of attempt 1, which had been given up; it is refused" in notes[0]


def test_a_folder_that_a_stopped_process_holds_is_left_to_it(ledger: Ledger, again: Any) -> None:
    key, _, job = again
    loop = phase(ledger, Told())
    assert loop._leased(key, slot("a"))["attempt"] == 1
    loop._hear(Message(slot("a"), job, "started", {"kind": "started"}))
    loop._hear(Message(slot("a"), job, "ended", ended("LOST", reason=BUSY)))
    assert loop.queue.take(Shape(1, 0)) == key
    assert loop._leased(key, slot("a"))["folder"] == f"{key}.2"
