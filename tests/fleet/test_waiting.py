"""Why each trial of a small sweep waits."""

from __future__ import annotations

from typing import Any

from sparsefleet.fleet.queue import TrialQueue
from sparsefleet.fleet.shape import Amount, Node
from sparsefleet.fleet.waiting import reason_of, reasons
from sparsefleet.ledger import TrialRow

NODES = [Node("a", "left", Amount(2, 1, 0), Amount(0, 0.5, 0)), Node("b", "right", Amount(2, 0, 0), Amount(1, 0, 0))]


def row(key: str, state: str = "PENDING", needs: str | None = None, gpus: float = 0.0, sweep: str = "mine") -> TrialRow:
    attempts = [{"n": 1, "sweep": sweep}] if state == "RUNNING" else []
    return TrialRow(0, key, key, {}, "sparse", depends_on=needs, resources={"cpus": 1, "gpus": gpus}, state=state, attempts=attempts)


ROWS = [row("gpu", gpus=1), row("cpu"), row("behind", needs="cpu"), row("theirs", "RUNNING", sweep="other-1a"), row("done", "SUCCEEDED")]


def told(closed: dict[str, str] | None = None, limit: int | None = None) -> list[dict[str, Any]]:
    return reasons(TrialQueue(ROWS), NODES, closed or {}, limit)


def test_every_trial_that_waits_is_told_once_and_why() -> None:
    assert [(group["why"], group["n"], group["keys"]) for group in told()] == [
        ("waits for 1 CPU, 1 GPU: left 0.5 of 1 GPUs free", 1, ["gpu"]),
        ("waits for 1 CPU: left 0 of 2 CPUs free, right has room", 1, ["cpu"]),
        ("runs in sweep other-1a", 1, ["theirs"]),
        ("waits for trial cpu that it starts from", 1, ["behind"]),
    ]


def test_a_silent_node_and_a_limit_are_reasons() -> None:
    assert told({"a": "is silent"})[0]["why"] == "waits for 1 CPU, 1 GPU: left is silent"
    assert told(limit=3)[1]["why"] == "waits for its turn: 3 at a time"


def test_out_of_memory_waits_to_run_alone() -> None:
    queue = TrialQueue([row("big")])
    assert queue.take(next(iter(queue.ready()))) == "big"
    queue.give_back("big", alone=True)
    assert [group["why"] for group in reasons(queue, NODES, {}, None)] == ["waits to run alone, since it ran out of memory"]


def test_whoever_reads_the_ledger_learns_the_same_of_one_trial() -> None:
    by_key = {r.key: r for r in ROWS}
    groups = [{**group, "keys": []} if group["resources"] else group for group in told()]  # as if they were not among the first
    assert {key: reason_of(r, by_key, groups) for key, r in by_key.items()} == {
        "gpu": "waits for 1 CPU, 1 GPU: left 0.5 of 1 GPUs free",
        "cpu": "waits for 1 CPU: left 0 of 2 CPUs free, right has room",
        "behind": "waits for trial cpu that it starts from",
        "theirs": "runs in sweep other-1a",
        "done": None,
    }
    assert reason_of(by_key["behind"], by_key, []) == "waits for trial cpu that it starts from"
    assert reason_of(by_key["cpu"], by_key, []) is None


def test_ten_thousand_that_wait_are_a_few_lines() -> None:
    rows = [row("first"), *(row(f"t{n}", needs="first") for n in range(5000)), *(row(f"r{n}") for n in range(5000))]
    groups = reasons(TrialQueue(rows), NODES, {}, None)
    assert [(group["n"], len(group["keys"])) for group in groups] == [(5001, 20), (5000, 20)]
