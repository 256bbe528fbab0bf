"""Order, dependencies and shapes."""

from __future__ import annotations

from sparsefleet.fleet.queue import Shape, TrialQueue
from sparsefleet.ledger import TrialRow

CPU, GPU = Shape(1.0, 0.0), Shape(1.0, 0.5)


def row(key: str, state: str = "PENDING", needs: str | None = None, gpus: float = 0.0) -> TrialRow:
    return TrialRow(0, key, key, {}, "sparse", depends_on=needs, resources={"cpus": 1, "gpus": gpus}, state=state)


def test_what_starts_from_a_trial_waits_for_it() -> None:
    queue = TrialQueue([row("late", needs="twin"), row("twin"), row("other")])
    assert [queue.take(CPU) for _ in range(3)] == ["twin", "other", None]
    queue.done("twin", "SUCCEEDED")
    assert queue.take(CPU) == "late"
    assert queue.broken_start("late") is None


def test_a_failed_start_is_named() -> None:
    queue = TrialQueue([row("twin", "POISONED"), row("late", needs="twin"), row("lost", needs="elsewhere")])
    assert queue.take(CPU) == "late"
    assert queue.broken_start("late") == "the trial it starts from, twin, is POISONED"
    assert queue.broken_start("lost") == "the trial it starts from is not in this sweep"
    assert queue.broken_start("twin") is None


def test_shapes_have_queues_of_their_own() -> None:
    queue = TrialQueue([row("a", gpus=0.5), row("b"), row("c", "SUCCEEDED")])
    assert set(queue.shapes()) == {CPU, GPU}
    assert (queue.take(GPU), queue.take(GPU), queue.take(CPU)) == ("a", None, "b")
    assert (queue.n_ready(), queue.n_open) == (0, 2)


def test_a_trial_that_did_not_run_goes_first_and_one_out_of_memory_goes_alone() -> None:
    queue = TrialQueue([row("a"), row("b"), row("c")])
    first = queue.take(CPU)
    queue.give_back(first)
    assert queue.take(CPU) == first
    queue.give_back(first, alone=True)
    assert list(queue.alone) == [first]
    assert queue.take(CPU) == "b"


def test_what_another_sweep_runs_is_waited_for() -> None:
    queue = TrialQueue([row("theirs", "RUNNING"), row("late", needs="theirs")])
    assert (queue.n_ready(), queue.elsewhere, queue.stuck) == (0, {"theirs": "another sweep"}, False)
    queue.done("theirs", "SUCCEEDED")
    assert queue.take(CPU) == "late"


def test_a_circle_is_noticed() -> None:
    assert TrialQueue([row("a", needs="b"), row("b", needs="a")]).stuck
    assert not TrialQueue([row("a", "SUCCEEDED")]).stuck


def test_what_was_lost_waits_behind_the_others() -> None:
    queue = TrialQueue([row("a"), row("b")])
    shape = queue.shapes()[0]
    first = queue.take(shape)
    queue.give_back(first, last=True)
    assert [queue.take(shape), queue.take(shape)] == ["b", "a"]


def test_what_is_given_back_waits_for_a_start_that_was_reopened() -> None:
    queue = TrialQueue([row("start", "SUCCEEDED"), row("one", needs="start"), row("two", needs="start")])
    shape = queue.shapes()[0]
    assert [queue.take(shape), queue.take(shape)] == ["one", "two"]
    queue.give_back("one")
    queue.reopen("start")
    queue.give_back("two", last=True)
    assert queue.broken_start("two") is None  # it is no failure of its start that this one has not ended
    assert [queue.take(shape), queue.take(shape)] == ["start", None]
    queue.done("start", "SUCCEEDED")
    assert {queue.take(shape), queue.take(shape)} == {"one", "two"}


def test_a_ready_trial_can_be_made_to_run_alone() -> None:
    queue = TrialQueue([row("a"), row("b")])
    queue.run_alone("b")
    assert (list(queue.alone), queue.take(CPU), queue.take(CPU)) == (["b"], "a", None)
