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
