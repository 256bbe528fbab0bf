"""Nodes on which no supervisor starts: how long they are left alone, and what is said of them."""

from __future__ import annotations

import pytest
import ray

from sparsefleet.errors import BackendUnreachable, VersionSkew
from sparsefleet.fleet.refusals import Refusals, brief, other_code

FULL = "OSError: [Errno 28] No space left on device"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_node_is_tried_again_later_each_time_and_told_of_once() -> None:
    clock = Clock()
    refusals = Refusals(clock)
    assert refusals.add("a", "node-a", FULL) == f"node-a is left alone for now, and tried again from time to time: {FULL}"
    assert refusals.add("a", "node-a", FULL) is None  # the other supervisors that were starting there
    pauses = []
    for _ in range(10):
        begun = clock.now
        while refusals.closed():
            clock.now += 1.0
        pauses.append(clock.now - begun)
        assert refusals.add("a", "node-a", FULL) == ""
    assert pauses == [5, 10, 20, 40, 80, 160, 320, 600, 600, 600]
    clock.now += 600
    assert refusals.add("a", "node-a", "ModuleNotFoundError: No module named 'sparsefleet'")


def test_a_node_that_never_works_ends_no_sweep_of_weeks() -> None:
    clock = Clock()
    refusals = Refusals(clock)
    for _ in range(2_000):
        assert refusals.add("a", "node-a", FULL) is not None
        clock.now += 600


def test_a_node_that_works_again_is_as_good_as_any_other() -> None:
    clock = Clock()
    refusals = Refusals(clock)
    refusals.add("a", "node-a", FULL)
    refusals.add("b", "node-b", FULL)
    assert refusals.given_up() == set()
    clock.now += 6
    assert refusals.closed() == {}
    assert set(refusals.reasons()) == {"a", "b"}  # nothing works there, as far as is known
    refusals.forgive("a")
    refusals.add("b", "node-b", FULL)
    assert refusals.given_up() == {"b"}
    assert refusals.closed() == {"b": f"is left alone for now: {FULL}"}
    refusals.keep(["a"])
    assert refusals.reasons() == {}


def test_a_death_that_may_be_the_nodes_own_is_told_when_it_happens_again() -> None:
    clock = Clock()
    refusals = Refusals(clock)
    assert refusals.add("a", "node-a", "killed", sure=False) == ""
    assert refusals.closed()
    clock.now += 6
    assert refusals.add("a", "node-a", "killed", sure=False) == "node-a is left alone for now, and tried again from time to time: killed"
    clock.now += 11
    assert refusals.add("a", "node-a", "killed", sure=False) == ""


def test_the_reason_is_one_line() -> None:
    try:
        raise OSError(28, "No space left on device")
    except OSError as cause:
        task = ray.exceptions.RayTaskError("hello", "a stack\nof lines\n" + FULL, cause)
    assert brief(task) == FULL
    assert brief(ray.exceptions.ActorDiedError(task)) == FULL
    assert brief(ray.exceptions.GetTimeoutError()) == "GetTimeoutError"
    away = BackendUnreachable("the store does not answer", cause="refused", fix="start it")
    assert brief(ray.exceptions.RayTaskError("hello", "a stack", away)) == "the store does not answer; cause: refused; fix: start it"
    assert "hunter2" not in brief(ray.exceptions.RayActorError(error_msg="no answer from https://me:hunter2@store/bucket"))
    assert len(brief(ray.exceptions.RayActorError(error_msg="x" * 1000))) == 200


@pytest.mark.parametrize(("n", "end"), [(1, "core is b, not a"), (5, "and 2 more")])
def test_other_code_is_told_in_a_line(n: int, end: str) -> None:
    names = ["core", "torch", "pruner/mine", "pruner/yours", "library/numpy"]
    told = other_code(VersionSkew({name: ("a", {"node": "b"}) for name in names[:n]}))
    assert told.startswith("it runs other code than the sweep was submitted with: core is b, not a")
    assert told.endswith(end)
