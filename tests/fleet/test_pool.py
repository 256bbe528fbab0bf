"""When the pool starts, waits for and gives back supervisors; Ray's answers are the test's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import ray
from fleet_wire import CPU, GPU, node

from sparsefleet.errors import BackendUnreachable, UserError
from sparsefleet.fleet.drought import LIMIT_S
from sparsefleet.fleet.shape import Amount, Shape


@pytest.mark.parametrize("others_hold", ["parts of each device", "the node that has room"])
def test_who_waits_for_what_others_hold_is_waited_for(wire: Any, others_hold: str) -> None:
    if others_hold == "parts of each device":
        w, shape = wire(node("a", 8, 2, free=Amount(8, 0.8, 1 << 20))), Shape(1, 0.5)
    else:
        w, shape = wire(node("a"), node("b", free=Amount(0, 0, 0))), CPU
        w.machines.wanted = {"id-a"}  # for a measurement
    for _ in range(20):
        w.adjust({shape: 1}, after_s=30)
        assert not list(w.pool.greet())
    assert w.pool.starting
    w.machines.wanted = set()
    w.machines.alive = [replace(one, free=one.total) for one in w.machines.alive]
    w.adjust({shape: 1}, after_s=170)
    assert not list(w.pool.greet())
    w.adjust({shape: 1}, after_s=20)
    with pytest.raises(BackendUnreachable, match="no supervisor answered within 180 s"):
        list(w.pool.greet())


def test_what_one_shape_needs_no_more_goes_to_the_other(wire: Any) -> None:
    """Four places; the trials on CPUs end one by one, those of another kind have been running on one place."""
    w, other = wire(node("a", 4)), Shape(1, 0, 100)
    assert w.adjust({CPU: 3, other: 4}) == {CPU: 3, other: 4}
    slots = {shape: [s for s in w.pool.slots if s.shape == shape] for shape in (CPU, other)}
    for slot in [*slots[CPU], slots[other][0]]:
        w.up(slot, "a")
        slot.jobs.append("a job")
    for n, slot in enumerate(slots[CPU]):  # one trial after the other ends, and no other is there
        slot.jobs.clear()
        slot.heard = w.now
        assert w.adjust({CPU: 2 - n, other: 4}, after_s=9)[CPU] == 3 - n
        assert w.adjust({CPU: 2 - n, other: 4}, after_s=2).get(CPU, 0) == 2 - n
    assert [slot.actor for slot in slots[CPU]] == w.killed
    assert w.adjust({other: 4}) == {other: 4}  # Ray has asked for their places all along


def test_who_waits_for_a_last_trial_or_for_another_sweep_holds_nothing_else(wire: Any) -> None:
    w = wire(node("a", 4), node("b", 4))
    w.adjust({CPU: 8})
    for slot in w.pool.slots[:6]:
        w.up(slot, "a")
    w.pool.slots[0].jobs.append("ten hours")
    assert w.adjust({CPU: 6}) == {CPU: 6}  # two that wait for a place are called back at once
    assert w.adjust({CPU: 5}, after_s=5) == {CPU: 6}
    assert w.adjust({}, after_s=6) == {CPU: 1}
    w.pool.slots[0].jobs.clear()
    assert w.adjust({}, after_s=30) == {}
    assert w.adjust({CPU: 2}) == {CPU: 2}


def test_a_short_pause_costs_no_supervisor(wire: Any) -> None:
    w = wire(node("a", 4))
    w.adjust({CPU: 4})
    for slot in w.pool.slots:
        w.up(slot, "a")
    for _ in range(10):
        assert w.adjust({}, after_s=4) == {CPU: 4}
        for slot in w.pool.slots:
            slot.heard = w.now  # its trial has ended
    assert not w.killed


def test_the_last_node_that_fits_is_waited_for_while_others_work_on(wire: Any) -> None:
    w = wire(cpus := node("cpus", 2), gpus := node("gpus", 2, 1))
    w.cluster.require(GPU)
    w.cluster.require(CPU)
    with pytest.raises(UserError, match="no node has what a trial needs: 1 CPU, 8 GPUs"):
        w.cluster.require(Shape(1, 8))
    w.adjust({CPU: 5, GPU: 5})
    runs = next(slot for slot in w.pool.slots if slot.shape == CPU)
    w.up(runs, "cpus")
    w.pool.send(runs, {"key": "k", "attempt": 1})
    w.machines.alive = [cpus]
    w.cluster.require(GPU)  # it was there
    for _ in range(5):
        assert w.adjust({CPU: 5, GPU: 5}, after_s=LIMIT_S)[CPU] == 4
    assert runs in w.pool.slots
    assert w.pool.event("s", [{"why": "waits for 1 CPU, 1 GPU"}]).data["waiting"] == [{"why": "waits for 1 CPU, 1 GPU"}]

    runs.jobs.clear()
    w.adjust({GPU: 5})
    w.adjust({GPU: 5}, after_s=LIMIT_S - 600)
    (told,) = w.pool.event("s", [{"why": "waits for 1 CPU, 1 GPU"}]).data["waiting"]
    assert told["why"] == "waits for 1 CPU, 1 GPU; the sweep ends in 10 min if none comes, and can be resumed"
    w.machines.alive = [cpus, gpus]
    assert w.adjust({GPU: 5}, after_s=601) == {GPU: 1}
    w.machines.alive = [cpus]
    w.adjust({GPU: 5}, after_s=1)
    with pytest.raises(BackendUnreachable, match="for 60 min no node has had what a trial needs: 1 CPU, 1 GPU") as ended:
        w.adjust({GPU: 5}, after_s=LIMIT_S + 1)
    assert ended.value.fix is not None
    assert "sparsefleet resume sweep-1" in ended.value.fix


def test_a_node_with_many_supervisors_is_one_loss(wire: Any) -> None:
    w = wire(node("big", 16))
    w.adjust({CPU: 16})
    for slot in list(w.pool.slots):
        w.up(slot, "big")
        w.pool.send(slot, {"key": str(id(slot)), "attempt": 1})
        slot.jobs[0].messages.value = ray.exceptions.ActorDiedError()
    w.machines.alive = []
    lost = w.pool.hear(0.0)
    assert [message.kind for message in lost] == ["lost"] * 16
    assert w.adjust({CPU: 16}) == {}


def test_a_node_where_somebody_measures_is_not_asked_what_it_would_run(wire: Any) -> None:
    """Asking loads torch there; of the one node that is left its first supervisor will tell."""
    w = wire(node("a"), node("b"))
    w.machines.wanted = {"id-b"}
    assert w.pool.describe([CPU]) == ([], [])


def full_disk() -> ray.exceptions.RayError:
    return ray.exceptions.RayTaskError("hello", "a stack", OSError(28, "No space left on device"))


def fail(w: Any, slot: Any, name: str) -> None:
    w.place(slot, name)
    slot.hello.value = full_disk()


def test_a_node_where_nothing_starts_is_left_alone_and_the_others_work_on(wire: Any) -> None:
    w = wire(node("good", 2), node("bad", 2))
    w.adjust({CPU: 9})
    first, second, *rest = w.pool.slots
    w.up(first, "good")
    w.pool.send(first, {"key": "k", "attempt": 1})
    w.place(second, "good")
    for slot in rest:
        fail(w, slot, "bad")
    assert not list(w.pool.greet())
    assert w.pool.slots == [first, second]
    assert [event.data["text"] for event in w.told] == [
        "bad is left alone for now, and tried again from time to time: OSError: [Errno 28] No space left on device"
    ]
    assert w.pool.places()[1] == {"id-bad": "is left alone for now: OSError: [Errno 28] No space left on device"}
    assert {one["node"]: one["state"] for one in w.pool.event("s", []).data["nodes"]} == {"good": "alive", "bad": "refused"}
    for _ in range(4):
        assert w.adjust({CPU: 9}, after_s=1) == {CPU: 2}  # no churn
    w.adjust({CPU: 9}, after_s=1)
    again = [slot for slot in w.pool.slots if slot not in (first, second)]
    assert len(again) == 2  # some seconds later it is tried again
    fail(w, again[0], "bad")
    assert not list(w.pool.greet())
    assert w.pool.slots == [first, second]
    assert w.adjust({CPU: 9}, after_s=9) == {CPU: 2}
    w.adjust({CPU: 9}, after_s=2)
    w.up(w.pool.slots[-1], "bad")
    assert not w.pool.places()[1]
    assert len(w.told) == 1
    assert first in w.pool.slots


def test_what_has_no_place_yet_is_asked_for_elsewhere(wire: Any) -> None:
    w = wire(node("good", 2), node("bad", 2))
    w.adjust({CPU: 9})
    waits, fails = w.pool.slots[0], w.pool.slots[1]
    fail(w, fails, "bad")
    w.pool.accepted = True
    assert not list(w.pool.greet())
    assert waits.actor in w.killed
    w.adjust({CPU: 9})
    assert [slot.actor.options["label_selector"] for slot in w.pool.slots] == [{"ray.io/node-id": "!in(id-bad)"}] * 2


def test_a_process_that_never_came_up_is_found_by_its_actor(wire: Any) -> None:
    w = wire(node("good", 2), node("bad", 2))
    w.adjust({CPU: 1})
    (slot,) = w.pool.slots
    w.machines.places[slot.actor] = "id-bad"
    slot.place.value = slot.hello.value = ray.exceptions.ActorDiedError(full_disk())
    assert not list(w.pool.greet())
    assert list(w.cluster.refusals.closed()) == ["id-bad"]
    assert len(w.told) == 1
    w.adjust({CPU: 1}, after_s=1)
    w.machines.places[w.pool.slots[0].actor] = "id-good"
    w.pool.slots[0].place.value = w.pool.slots[0].hello.value = ray.exceptions.ActorDiedError()  # its whole node may be gone in a moment
    assert not list(w.pool.greet())
    assert (set(w.cluster.refusals.closed()), len(w.told)) == ({"id-bad", "id-good"}, 1)


def test_a_sweep_that_cannot_begin_anywhere_ends_after_a_second_try(wire: Any) -> None:
    w = wire(node("a"), node("b", 1))
    for name in ("a", "b", "a"):
        w.adjust({CPU: 1}, after_s=6)
        fail(w, w.pool.slots[-1], name)
        assert not list(w.pool.greet())
    w.adjust({CPU: 1}, after_s=6)
    fail(w, w.pool.slots[-1], "b")
    with pytest.raises(BackendUnreachable, match="no supervisor can start") as ended:
        list(w.pool.greet())
    full = "OSError: [Errno 28] No space left on device"
    assert ended.value.cause == f"a: {full}; b: {full}"


def test_a_sweep_that_has_begun_waits_for_its_only_node_to_work_again(wire: Any) -> None:
    w = wire(node("a", 1))
    w.adjust({CPU: 1})
    w.up(w.pool.slots[0], "a")
    w.pool.kill(w.pool.slots[0])
    end = w.now + LIMIT_S
    while w.now < end:
        w.adjust({CPU: 1}, after_s=1)
        for slot in w.pool.slots:
            fail(w, slot, "a")
        assert not list(w.pool.greet())
    assert 8 < len(w.killed) < 20
    with pytest.raises(BackendUnreachable, match="for 60 min no node") as ended:
        w.adjust({CPU: 1}, after_s=20)
    assert ended.value.cause == "a: 1 CPUs, 0 GPUs, 1,048,576 MiB: OSError: [Errno 28] No space left on device"


def test_another_node_is_one_that_is_open_and_fits(wire: Any) -> None:
    w = wire(node("a"), node("b"), node("small", 0))
    w.adjust({CPU: 1})
    (slot,) = w.pool.slots
    w.up(slot, "a")
    assert w.pool.has_another(slot)
    w.cluster.refusals.add("id-b", "b", "nothing starts there")
    assert not w.pool.has_another(slot)
