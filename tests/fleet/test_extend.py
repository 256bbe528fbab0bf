"""A finished grid that grows runs its new points alone, and sweeps share what they have in common."""

from __future__ import annotations

from pathlib import Path

import pytest
from fleet_sweeps import Told, enter, settings

from sparsefleet.fleet.driver import submit
from sparsefleet.ledger import Ledger, SweepLock, open_ledger, rows

GRID = (
    "train: {{epochs: 0, batch_size: 64}}\nseeds: {seeds}\naxes:\n  density: [{densities}]\n  method: [{{rewirer: static, layer: csr}}]\n"
)


def grid(name: str, seeds: int = 2, densities: str = "0.1") -> str:
    return f"name: {name}\n" + GRID.format(seeds=seeds, densities=densities)


def committed(ledger: Ledger, sweep: str) -> list[str]:
    """Ends every open trial of the sweep; the keys."""
    keys = [t.key for t in ledger.trials(sweep, with_record=False) if t.state not in rows.TERMINAL]
    with SweepLock(ledger.home, sweep):
        for key in keys:
            attempt = ledger.lease(key, sweep, "n")
            assert attempt is not None
            assert ledger.commit(key, attempt, {"state": "SUCCEEDED", "reason": None})
        ledger.set_sweep_state(sweep, "DONE")
    return keys


def stands(ledger: Ledger, sweep: str) -> dict[str, int]:
    return {name: n for name, n in ledger.sweep(sweep).counts.items() if n}


def test_more_seeds_and_values_of_an_axis_are_all_that_is_left_to_run(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as ledger:
        first = enter(tmp_path, grid("grow"))
        assert len(committed(ledger, first)) == 4  # two seeds, each with its twin
        seeds = enter(tmp_path, grid("grow", seeds=3))
        assert seeds != first
        assert stands(ledger, seeds) == {"total": 6, "cached": 4, "SUCCEEDED": 4, "PENDING": 2}
        committed(ledger, seeds)
        values = enter(tmp_path, grid("grow", seeds=3, densities="0.1, 0.2"))
        assert stands(ledger, values) == {"total": 9, "cached": 6, "SUCCEEDED": 6, "PENDING": 3}  # the twins are shared
        assert stands(ledger, first) == {"total": 4, "SUCCEEDED": 4}


def test_twins_that_two_open_sweeps_share_are_held_by_one_of_them(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as ledger:
        one, other = enter(tmp_path, grid("one")), enter(tmp_path, grid("other", densities="0.3"))
        shared = {t.key for t in ledger.trials(one)} & {t.key for t in ledger.trials(other)}
        assert len(shared) == 2
        key = min(shared)
        with SweepLock(tmp_path, one), SweepLock(tmp_path, other):
            attempt = ledger.lease(key, one, "n")
            assert attempt == 1
            assert ledger.lease(key, other, "n") is None  # it waits for the first
            assert ledger.commit(key, attempt, {"state": "SUCCEEDED", "reason": None})
            assert ledger.lease(key, other, "n") is None  # and has it
        assert [stands(ledger, sweep)["SUCCEEDED"] for sweep in (one, other)] == [1, 1]
        items = [item for item in ledger.outbox(100) if item.kind == "trial" and item.key == key]
        assert {item.sweep: item.payload["shared"] for item in items} == {one: False, other: True}


def test_failed_trials_alone_are_put_back(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as ledger:
        sweep = enter(tmp_path, grid("again"))
        keys = [t.key for t in ledger.trials(sweep)]
        with SweepLock(tmp_path, sweep):
            for key in keys[:3]:
                attempt = ledger.lease(key, sweep, "n")
                state = "TIMEOUT" if key == keys[1] else "SUCCEEDED"
                if state == "TIMEOUT":
                    ledger.end_attempt(key, attempt, state, "too slow", requeue=False, final_state=state)
                else:
                    ledger.commit(key, attempt, {"state": state, "reason": None})
        assert ledger.retry_failed(sweep) == 1
        assert [t.state for t in ledger.trials(sweep)] == ["SUCCEEDED", "PENDING", "SUCCEEDED", "PENDING"]


def test_a_resubmission_with_other_parallelism_follows_it(tmp_path: Path) -> None:
    sweep = enter(tmp_path, grid("again") + "max_parallel: 1\n")
    assert enter(tmp_path, grid("again") + "max_parallel: 3\n") == sweep
    with open_ledger(tmp_path) as ledger:
        assert ledger.sweep(sweep).settings["max_parallel"] == 3


@pytest.mark.ray
def test_growing_a_finished_grid_really_runs_the_new_points_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEFLEET_HOME", str(tmp_path))
    first = enter(tmp_path, grid("grow", seeds=1))
    assert submit(tmp_path, first, settings(tmp_path), Told()).state == "DONE"
    told = Told()
    grown = enter(tmp_path, grid("grow", seeds=2))
    row = submit(tmp_path, grown, settings(tmp_path), told)
    assert (row.state, row.counts["SUCCEEDED"], row.counts["cached"]) == ("DONE", 4, 2)
    ran = {event.data["key"] for event in told.events if event.kind == "trial"}
    with open_ledger(tmp_path) as ledger:
        trials = list(ledger.trials(grown))
    assert ran == {t.key for t in trials if t.spec["seed"] == 1}
    assert [len(t.attempts) for t in trials] == [1] * 4
