"""The measure phase's rounds: what is taken again, with what, and which of two measurements counts. Passes are made by hand."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from fleet_sweeps import Told, settings

from sparsefleet.errors import BackendUnreachable, VersionSkew
from sparsefleet.fleet import measuring, room
from sparsefleet.fleet.events import Event
from sparsefleet.fleet.forkserver import description
from sparsefleet.fleet.measuring import MeasurePhase
from sparsefleet.fleet.outcome import DAMAGED, RESULT, WAITS
from sparsefleet.fleet.slots import Message, Slot
from sparsefleet.fleet.untimed import untimed
from sparsefleet.measure.passes import MeasureRequest, PassResult
from sparsefleet.measure.recheck import recheck
from tests.measure.bodies import THEORY, disturbed, samples
from tests.measure.test_passes import LIMITS, Passes, timed

ASKED = {"level": "screen", "batch_sizes": [64], "ops": ["step"]}


def measurement(**changes) -> PassResult:
    """Of a dense, a sparse and a small-dense side; ``rival`` and ``second`` may be off."""
    sides = {name: changes.pop(name) for name in ("rival", "second") if name in changes}
    busy = changes.pop("busy", 0)
    return timed(samples=asdict(disturbed(samples(**{"rival": 2.5e-3, **sides}), busy)), **changes)


GOOD = measurement()
BUSY = measurement(busy=40)
DRIFTING_RIVAL = measurement(rival=[2.5e-3 * (1 + 0.1 * i / 50) for i in range(50)])


class Script(Passes):
    """Hands out these time passes one after the other."""

    def __init__(self, *times: PassResult | None) -> None:
        super().__init__()
        self.times = list(times)

    def __call__(self, request: MeasureRequest) -> PassResult | None:
        found = super().__call__(request)
        return self.times.pop(0) if request.part.kind == "time" else found

    def refreshed(self) -> list[bool]:
        return [one.part.refresh for one in self.asked if one.part.kind == "peaks"]

    def chosen(self) -> list[bool]:
        return [bool(one.chosen) for one in self.asked if one.part.kind == "time"]


class Nobody:
    """Asks the driver to stop."""

    stopping = False


class NoPool:
    """The phase ends the supervisors of the trials; here there are none."""

    def close(self) -> None:
        pass


@pytest.fixture
def phase(ledger, monkeypatch):
    """Runs the measure phase of a sweep with the passes of a script; the row that it leaves."""

    def run(script: Script, sweep: str = "a-1", **options):
        monkeypatch.setattr(MeasurePhase, "_pass", lambda self, request: script(request))
        asked = settings(Path(ledger.home), measure=ASKED, **options)
        MeasurePhase(ledger, sweep, NoPool(), asked, Nobody(), Told()).run()
        rows = ledger.timings(sweep)
        for row in rows:
            for timing in row.timings:
                assert recheck(timing, ledger.samples(row.samples_ref)) == []
        return rows[0] if rows else None

    return run


def refs(row) -> list[str]:
    return [*row.timings[0]["earlier"], row.timings[0]["samples_ref"]]


def test_what_is_trusted_is_measured_once(phase):
    script = Script(GOOD)
    row = phase(script)
    assert (row.timings[0]["verdict"], row.timings[0]["attempt"], script.times) == ("FASTER", 1, [])


def test_what_is_not_trusted_is_measured_once_more_with_nothing_remembered(phase):
    script = Script(BUSY, GOOD)
    row = phase(script)
    assert (row.timings[0]["verdict"], row.timings[0]["attempt"]) == ("FASTER", 2)
    assert script.refreshed() == [False, False]
    assert script.chosen() == [False, False]
    assert script.kinds().count("memory dense") == 2


def test_a_figure_that_beat_the_machines_limit_has_the_limits_taken_again(phase):
    fast = measurement(theory={**THEORY, "limit_s": 6e-3})
    script = Script(fast, GOOD)
    assert phase(script).timings[0]["verdict"] == "FASTER"
    assert script.refreshed() == [False, True]


def test_a_rival_that_is_not_trusted_is_reason_enough_and_the_better_measurement_counts(phase, ledger):
    """The first one has a trusted headline; a neighbour spoils the second one altogether: the first stays, and names the second."""
    row = phase(Script(DRIFTING_RIVAL, BUSY))
    (timing,) = row.timings
    assert (timing["verdict"], timing["rival_verdict"], timing["attempt"]) == ("FASTER", "NOT_TRUSTWORTHY", 2)
    assert all(ledger.samples(ref.partition("=")[2]) for ref in refs(row))


def test_of_equally_trusted_measurements_the_newer_one_counts(phase):
    row = phase(Script(BUSY, measurement(busy=45)))
    assert row.timings[0]["kept"] == 5


def test_remeasuring_keeps_the_whole_history(phase, ledger):
    first = phase(Script(BUSY, measurement(busy=41)))
    assert len(refs(first)) == 2
    second = phase(Script(measurement(busy=42), measurement(busy=43)), remeasure=True)
    assert second.timings[0]["attempt"] == 4
    assert refs(second)[:2] == refs(first)
    assert len(set(refs(second))) == 4
    third = phase(Script(GOOD), remeasure=True)
    assert (third.timings[0]["verdict"], third.timings[0]["attempt"], len(set(refs(third)))) == ("FASTER", 5, 5)
    assert all(ledger.samples(ref.partition("=")[2]) for ref in refs(third))
    assert untimed(ledger, "a-1", ASKED, again=True) == []


def test_a_second_measurement_that_failed_takes_nothing_away(phase):
    crashed = PassResult(state="CRASHED", reason="signal 11")
    assert phase(Script(DRIFTING_RIVAL, crashed)).timings[0]["verdict"] == "FASTER"


def test_a_net_that_turns_out_wrong_loses_its_timing(phase):
    row = phase(Script(DRIFTING_RIVAL, PassResult(state="INCORRECT", reason="under the clock")))
    assert (row.state, row.timings) == ("INCORRECT", [])


def test_processes_that_got_mixed_up_are_tried_again(phase):
    row = phase(Script(timed(fingerprint={"id": "fp:other", "stable": {}}), GOOD))
    assert row.timings[0]["verdict"] == "FASTER"


def test_another_sweep_takes_over_what_this_machine_timed(phase, ledger):
    phase(Script(GOOD))
    script = Script()
    row = phase(script, "b-2")
    assert row.timings == ledger.timings("a-1")[0].timings
    assert script.kinds() == ["peaks"]


def test_another_machine_measures_for_itself(phase):
    phase(Script(GOOD))
    here = {**GOOD.fingerprint, "id": "fp:other"}
    script = Script(GOOD.model_copy(update={"fingerprint": here}))
    script.answers["peaks"] = PassResult(state="SUCCEEDED", facts=LIMITS | {"machine": "fp:other"})
    assert phase(script, "b-2").timings[0]["fingerprint"] == "fp:other"


def test_who_asks_to_stop_leaves_no_timing(phase):
    assert phase(Script(None)) is None


class OneSlot(NoPool):
    """A supervisor with a node to itself that says these things of its jobs, one after the other."""

    def __init__(self, *says: dict) -> None:
        self.says = list(says)
        self.slots = []
        self.told = []
        self.is_closed = 0
        self.runs = {}
        self.others = []

    def close(self) -> None:
        self.is_closed += 1

    def adjust_whole(self, shape) -> None:
        if not self.slots:
            self.slots = [Slot(shape, None, None, None, 0.0, whole=True)]

    def has_another(self, slot):
        return bool(self.others)

    def refuse(self, slot, reason):
        self.told.append(reason)
        self.slots, self.runs = [], self.others.pop()

    def greet(self):
        return [(slot, {**description(), **self.runs, "node": "late"}) for slot in self.slots if not slot.ready]

    def with_room(self, depth):
        return [slot for slot in self.slots if slot.ready]

    def send(self, slot, job) -> None:
        self.job = job

    def hear(self, wait_s):
        if not hasattr(self, "job"):
            return []
        body = self.says.pop(0)
        kind = "progress" if "values" in body else "ended"
        job = self.job
        if kind == "ended":
            del self.job
        return [Message(self.slots[0], job, kind, body)]

    def event(self, sweep, waiting):
        self.told += [one["why"] for one in waiting]
        return Event("fleet", {"sweep": sweep, "waiting": waiting})

    def places(self):
        return [], {}


def said(end, reason=""):
    return {"end": end, "reason": reason, "record": None}


def results(script=None) -> list[dict]:
    """Of the passes of one trusted measurement, as its supervisor says them."""
    asked = script or Passes()
    taken = [asked.answers["peaks"], GOOD, asked.answers["memory"], asked.answers["memory"]]
    return [{"end": RESULT, "reason": "", "record": one.model_dump(mode="json")} for one in taken]


@pytest.fixture
def driven(ledger, monkeypatch):
    """A measure phase whose only supervisor says what it is told to; pauses take no time."""
    monkeypatch.setattr(room, "_PAUSE_S", 0.0)
    monkeypatch.setattr(measuring, "FLEET_EVERY_S", 0.0)

    def make(*says: dict) -> MeasurePhase:
        return MeasurePhase(ledger, "a-1", OneSlot(*says), settings(Path(ledger.home), measure=ASKED), Nobody(), Told())

    return make


AWAY = said(WAITS, "artifact aaaa cannot be read from s3://b\n  cause: timed out")


def test_a_short_outage_of_the_store_costs_no_timing(driven, ledger):
    peaks, *others = results()
    driven(AWAY, AWAY, peaks, AWAY, AWAY, *others).run()
    (row,) = ledger.timings("a-1")
    assert row.timings[0]["verdict"] == "FASTER"


def test_a_long_outage_ends_the_sweep_and_enters_nothing(driven, ledger):
    phase = driven(results()[0], AWAY, AWAY, AWAY)
    with pytest.raises(BackendUnreachable, match="cannot be read from s3://b") as caught:
        phase.run()
    assert "sparsefleet resume" in caught.value.fix
    assert ledger.timings("a-1") == []
    assert len(untimed(ledger, "a-1", ASKED)) == 1
    driven(*results()).run()
    assert ledger.timings("a-1")[0].state == "SUCCEEDED"


def test_a_damaged_network_is_handed_back_to_be_trained_again(driven, ledger):
    phase = driven(results()[0], said(DAMAGED, "artifact aaaa does not match its digest\n  cause: it was moved"))
    phase.run()
    (row,) = ledger.trials("a-1")
    assert phase.damaged == {row.key: "artifact aaaa does not match its digest"}
    assert ledger.timings("a-1") == []
    assert phase._pool.is_closed == 2  # nothing holds the node any more: its trial is about to run there


def test_a_measurement_that_waits_for_somebody_elses_says_so(driven):
    phase = driven({"values": {"waits_for": "waits for cpu: process 7 measures on it"}}, *results())
    phase.run()
    assert "the measurement waits for cpu: process 7 measures on it" in phase._pool.told


def test_a_node_with_other_code_is_left_for_one_that_has_the_right_one(driven, ledger):
    phase = driven(*results())
    phase._pool.runs, phase._pool.others = {"core": "0" * 64}, [{}]
    phase.run()
    assert ledger.timings("a-1")[0].state == "SUCCEEDED"
    assert any(told.startswith("it runs other code than the sweep was submitted with: core is") for told in phase._pool.told)


@pytest.mark.parametrize("what", ["harness", "core"])
def test_a_node_with_other_code_times_nothing(driven, ledger, what):
    """All trials were there already, so that nobody has looked at the node before: it runs other code than the key of the timing says."""
    phase = driven(*results())
    phase._pool.runs = {what: "0" * 64}
    with pytest.raises(VersionSkew) as caught:
        phase.run()
    assert list(caught.value.differences) == [what]
    assert "late" in caught.value.differences[what][1]
    assert not hasattr(phase._pool, "job")
    assert ledger.timings("a-1") == []
