"""The driver's loop on a real ledger, with supervisors that never come: what it does of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fleet_sweeps import Told

from sparsefleet.errors import VersionSkew
from sparsefleet.fleet.events import DriverSettings, Event
from sparsefleet.fleet.phase import TrialPhase
from sparsefleet.fleet.shape import Shape
from sparsefleet.fleet.slots import Message, Slot
from sparsefleet.ledger import Ledger, SweepLock, SweepTrial, open_ledger


class Nobody:
    """A pool without supervisors: they are always about to start."""

    slots: tuple[Slot, ...] = ()
    starting, full, n_busy = True, False, 0

    def __init__(self, limit: int = 5) -> None:
        self.looks, self._limit = 0, limit

    def describe(self, shapes: Any) -> tuple[list[dict[str, Any]], list[str]]:
        return [], []

    def adjust(self, needs: Any) -> None: ...

    def greet(self) -> tuple[()]:
        return ()

    def with_room(self, depth: int) -> list[Slot]:
        return []

    def places(self) -> tuple[list[Any], dict[str, str]]:
        return [], {}

    def event(self, sweep: str, waiting: Any) -> Event:
        return Event("fleet", {"sweep": sweep, "waiting": waiting})

    def hear(self, wait_s: float) -> list[Any]:
        self.looks += 1
        assert self.looks < self._limit, "the loop goes on for ever"
        return []


class Calm:
    stopping = cancelled = False
    n_signals = 0


def asked(key: str, needs: str | None = None) -> SweepTrial:
    return SweepTrial(["start", "late", "one", "two"].index(key), key, key, {"seed": 0}, "sparse", depends_on=needs, resources={"cpus": 1})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    with open_ledger(tmp_path / "home") as found:
        yield found


def enter(ledger: Ledger, sweep: str, *trials: SweepTrial) -> None:
    ledger.create_sweep(sweep, sweep, sweep, "", {}, trials)


def end(ledger: Ledger, key: str, sweep: str, state: str = "SUCCEEDED") -> None:
    attempt = ledger.lease(key, sweep, "here")
    assert attempt is not None
    assert ledger.commit(key, attempt, {"state": state, "reason": None})


def phase(ledger: Ledger, sweep: str, told: Any = None, pool: Any = None) -> TrialPhase:
    return TrialPhase(ledger, sweep, pool or Nobody(), DriverSettings(data_root=Path("data")), Calm(), told or Told())


def test_a_sweep_whose_trials_have_all_ended_waits_for_no_supervisor(ledger: Ledger) -> None:
    """It is driven again for its timings: ``resume --remeasure``, or after a driver that died while it measured."""
    enter(ledger, "a", asked("one"))
    end(ledger, "one", "a")
    loop = phase(ledger, "a")
    loop.run()
    assert loop._pool.looks == 0


def test_a_sweep_whose_trials_another_one_holds_ends_with_it(ledger: Ledger) -> None:
    for sweep in ("a", "b"):
        enter(ledger, sweep, asked("one"))
    with SweepLock(ledger.home, "b"):
        attempt = ledger.lease("one", "b", "there")
        loop = phase(ledger, "a")
        assert loop.queue.elsewhere == {"one": "b"}
        assert ledger.commit("one", attempt, {"state": "SUCCEEDED", "reason": None})
    loop.run()
    assert (loop.queue.n_open, loop.queue.states["one"]) == (0, "SUCCEEDED")


def test_a_newer_sweep_that_is_cancelled_takes_no_trial_from_an_older_one(ledger: Ledger) -> None:
    for sweep in ("old", "new"):
        enter(ledger, sweep, asked("one"))
    with SweepLock(ledger.home, "new"):
        attempt = ledger.lease("one", "new", "there")
        loop = phase(ledger, "old")
        ledger.end_attempt("one", attempt, "INTERRUPTED", "the driver stopped", requeue=True, final_state=None)
        ledger.set_sweep_state("new", "CANCELLED")
    assert ledger.trial("one").state == "CANCELLED"  # as the newer one shows it
    loop._look_elsewhere()
    assert (loop.queue.states["one"], loop.queue.n_ready(), loop.queue.n_open) == ("PENDING", 1, 1)


def test_a_trial_that_another_sweep_refused_first_is_refused_here_too(ledger: Ledger) -> None:
    for sweep in ("a", "b"):
        enter(ledger, sweep, asked("start"), asked("late", "start"))
    end(ledger, "start", "a", "PLUGIN_ERROR")
    loop = phase(ledger, "b")
    assert ledger.refuse("late", "INVALID", "the trial it starts from, start, is PLUGIN_ERROR")
    slot = Slot(Shape(1.0, 0.0), None, None, None, 0.0, node="here", ready=True)
    assert loop._next(slot) is None
    assert (loop.queue.states["late"], loop.queue.n_open) == ("INVALID", 0)


def test_what_a_dead_driver_held_can_be_refused(ledger: Ledger) -> None:
    enter(ledger, "a", asked("start"), asked("late", "start"))
    assert ledger.lease("late", "a", "here") == 1  # nobody holds the sweep's lock
    assert ledger.refuse("late", "INVALID", "the trial it starts from, start, is POISONED")
    assert [a["end"] for a in ledger.trial("late").attempts] == ["INTERRUPTED"]


def test_out_of_memory_still_means_alone_for_the_next_driver(ledger: Ledger) -> None:
    enter(ledger, "a", asked("one"), asked("two"))
    attempt = ledger.lease("two", "a", "here")
    ledger.end_attempt("two", attempt, "OOM", "out of memory", requeue=True, final_state=None)
    assert list(phase(ledger, "a").queue.alone) == ["two"]


def test_another_selection_of_the_same_grid_keeps_the_timings(ledger: Ledger) -> None:
    enter(ledger, "a", asked("one"), asked("two"))
    ledger.commit_timing("a", "c" * 64, ["one", "two"], "SUCCEEDED", [{"op": "step"}])
    enter(ledger, "a", asked("one"))
    (timing,) = ledger.timings("a")
    assert (timing.keys, timing.timings) == (["one"], [{"op": "step"}])


CODE = {"core": "a" * 64, "torch": "2.15.0"}


def hello(name: str, **other: str) -> dict[str, Any]:
    return {"node": name, "sparsefleet": "0.1.0", **CODE, "plugins": [], "unusable": [], **other}


def test_a_listener_that_fails_undoes_nothing_that_was_heard(ledger: Ledger) -> None:
    def fails(event: Event) -> None:
        raise RuntimeError(event.kind)

    enter(ledger, "a", asked("one"), asked("two"))
    with SweepLock(ledger.home, "a"):
        loop = phase(ledger, "a", fails)
        slot = SimpleNamespace(node="here")
        attempts = {key: ledger.lease(key, "a", "here") for key in ("one", "two")}
        with pytest.raises(RuntimeError, match="trial"):
            loop._take([Message(slot, {"key": key, "attempt": n}, "started", {}) for key, n in attempts.items()])
        assert [ledger.trial(key, sweep="a").state for key in attempts] == ["RUNNING", "RUNNING"]


def test_a_node_with_other_code_that_comes_late_ends_nothing(ledger: Ledger, wire: Any) -> None:
    from fleet_wire import node

    enter(ledger, "a", *(replace(asked(key), request={"code": CODE}) for key in ("one", "two")))
    w, told = wire(node("good", 1)), Told()
    loop = phase(ledger, "a", told, w.pool)
    w.pool.adjust(loop._needs())
    (good,) = w.pool.slots
    w.place(good, "good")
    good.hello.value = hello("good")
    loop._greet()
    loop._feed()
    w.machines.alive.append(node("late", 1))
    w.pool.adjust(loop._needs())
    late = next(slot for slot in w.pool.slots if slot is not good)
    w.place(late, "late")
    late.hello.value = hello("late", torch="2.14.0")
    loop._greet()
    assert w.pool.slots == [good]
    assert [job.key for job in good.jobs] == ["one"]
    assert w.cluster.closed() == {"id-late"}
    reason = "it runs other code than the sweep was submitted with: torch is 2.14.0, not 2.15.0"
    assert [event.data["text"] for event in w.told] == [f"late is left alone for now, and tried again from time to time: {reason}"]


def test_other_code_on_the_first_node_is_refused_before_anything_is_queued(ledger: Ledger, wire: Any) -> None:
    from fleet_wire import node

    enter(ledger, "a", replace(asked("one"), request={"code": CODE}))
    w = wire(node("only"))
    loop = phase(ledger, "a", pool=w.pool)
    w.pool.adjust(loop._needs())
    w.place(w.pool.slots[0], "only")
    w.pool.slots[0].hello.value = hello("only", core="b" * 64)
    with pytest.raises(VersionSkew):
        loop._preflight()
    assert ledger.trial("one").attempts == []
