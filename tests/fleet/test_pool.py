"""When the pool starts, waits for and gives back supervisors; Ray's answers are the test's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fleet_wire import CPU, node

from sparsefleet.errors import BackendUnreachable
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
