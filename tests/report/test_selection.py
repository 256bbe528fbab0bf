from __future__ import annotations

import json
import random
from typing import Any

import pytest
from report_rows import candidates, spec, trial

from sparsefleet.ledger.rows import TrialRow
from sparsefleet.report.compare import rows
from sparsefleet.report.selection import settle
from sparsefleet.report.table import render

SET: dict[str, Any] = {"density": 0.1, "method": {"rewirer": {"name": "set"}}, "layer": "csr"}
TESTS = {0.01: (0.80, 0.81), 0.1: (0.90, 0.92), 1.0: (0.95, 0.96)}


def sweep(**sparse: Any) -> list[TrialRow]:
    """Dense is best on the validation share at 0.1, SET at 0.01; the test figures would choose 1.0."""
    dense = candidates("twin", {0.01: (0.7, 0.7), 0.1: (0.9, 0.8), 1.0: (0.84, 0.85)}, tests=TESTS)
    scores = {0.01: (0.9, 0.9), 0.1: (0.8, 0.99), 1.0: (0.1, 0.2)}
    named = {"arm": "sparse", "twin": "twin", "twin_key": "twin-0.01-0", "changes": SET, **sparse}
    return [*dense, *candidates("set", scores, tests=TESTS, **named)]


def test_validation_chooses_and_the_test_set_does_not() -> None:
    dense, sparse = rows(sweep())
    assert dense["tuning"]["selected"] == {"optimizer.lr": 0.1}
    assert dense["tuning"]["scores"] == [0.7, pytest.approx(0.85), pytest.approx(0.845)]
    assert (dense["accuracy"], dense["trial_ids"]) == (pytest.approx(0.91), ["id-twin-0.1-0", "id-twin-0.1-1"])
    assert sparse["accuracy"] == pytest.approx(0.805)  # 0.9 on validation; 0.1 has 0.895
    assert sparse["delta_twin"] == pytest.approx(((0.80 - 0.90) + (0.81 - 0.92)) / 2)
    assert (sparse["twin"], sparse["n_paired"], sparse["twin_tuned"]) == (dense["id"], 2, True)
    assert sparse["tuning"]["trials"] == 6
    assert sparse["tuning"]["epochs"] == 12
    assert sparse["tuning"]["tried"] == [{"optimizer.lr": lr} for lr in (0.01, 0.1, 1.0)]
    assert sparse["unequal_budget"] == {}


def test_the_learning_rates_that_tuning_found_are_no_unfairness() -> None:
    assert rows(sweep())[1]["twin_differs"] == {}


def test_the_order_of_the_records_changes_nothing() -> None:
    trials = sweep()
    expected = json.dumps(rows(trials))
    random.Random(0).shuffle(trials)
    assert json.dumps(rows(trials)) == expected


@pytest.mark.parametrize(
    ("scores", "winner"),
    [
        ({0.01: (0.9, 0.9), 0.1: (0.9, 0.9), 1.0: (0.8, 0.8)}, 0.01),  # of equals the first as written
        ({0.01: (0.9, "DIVERGED"), 0.1: (0.6, 0.6), 1.0: (0.5, 0.5)}, 0.1),  # (0.9 + 0.1) / 2 is less
        ({0.01: (0.9, "CRASHED"), 0.1: (0.6, 0.6), 1.0: (0.5, 0.5)}, 0.1),  # a failure is worse than any figure
        ({0.01: ("CRASHED", "CRASHED"), 0.1: ("DIVERGED", "DIVERGED"), 1.0: ("CRASHED", 0.5)}, 0.1),
    ],
)
def test_who_wins(scores: dict[float, tuple[Any, ...]], winner: float) -> None:
    trials = candidates("x", scores, tests=TESTS)
    (only,) = settle(trials).tuning[f"x-{winner}-0"]["selected"].values()
    assert only == winner


def test_a_mean_squared_error_is_best_low() -> None:
    trials = candidates("x", {0.01: (3.0, 3.0), 0.1: (1.0, 1.0), 1.0: (2.0, 2.0)}, tests=TESTS)
    for one in trials:
        one.record["accuracy"]["metric"] = "mse"
    assert "x-0.1-0" in settle(trials).tuning


def test_an_open_selection_is_shown_and_claims_nothing() -> None:
    trials = candidates("x", {0.01: (0.9, 0.9), 0.1: ("PENDING", "PENDING"), 1.0: (0.1, 0.1)}, tests=TESTS)
    (row,) = rows(trials)
    assert (row["tuning"]["open"], row["tuning"]["scores"][1]) == (2, None)
    assert any("2 candidate trials have not run" in line for line in render([row]))
    compared = rows([*candidates("twin", {0.01: (0.9, 0.9), 0.1: (0.9, "PENDING")}, tests=TESTS), *sweep()[6:]])
    assert compared[1]["acc_reason"].startswith("the other side: its selection is open: 1 of 4")


def test_unequal_tuning_is_flagged() -> None:
    dense = trial("d0", 0.9, spec=spec(0)), trial("d1", 0.91, spec=spec(1))
    scores = {0.01: (0.9, 0.9), 0.1: (0.8, 0.8), 1.0: (0.1, 0.2)}
    tuned = candidates("set", scores, tests=TESTS, arm="sparse", twin_key="d0", changes=SET)
    row = rows([*dense, *tuned])[1]
    assert (row["twin_tuned"], row["unequal_budget"]) == (False, {"candidates": [3, 1], "tuning_epochs": [6, 2]})
    lines = render(rows([*dense, *tuned]))
    assert "unequal budget, tuning: 3 candidates, its twin 1; 6 epochs with tuning, its twin 2: set at density 0.1" in lines
    assert any(line.startswith("dense was not tuned") for line in lines)


def test_an_untuned_method_is_compared_with_the_tuned_dense() -> None:
    fixed = [
        trial(f"f{s}", v, spec=spec(s, **SET, optimizer={"kind": "sgd", "lr": 0.01}), arm="sparse", twin_key=f"twin-0.01-{s}")
        for s, v in enumerate((0.85, 0.86))
    ]
    dense, sparse = rows([*sweep()[:6], *fixed])
    assert (sparse["twin"], sparse["twin_tuned"]) == (dense["id"], True)
    assert sparse["delta_twin"] == pytest.approx(((0.85 - 0.90) + (0.86 - 0.92)) / 2)
    assert sparse["unequal_budget"]["candidates"] == [1, 3]


def test_a_candidate_that_the_grid_also_names_has_its_row() -> None:
    trials = sweep(alone=True)
    assert len(rows(trials)) == 1 + 3
    lost = next(row for row in rows(trials) if row["id"] == "id-set-1.0-0")
    assert lost["tuning"] is None


def test_two_selections_that_share_a_twin_choose_apart() -> None:
    one = candidates("a", {0.01: (0.9, 0.9), 0.1: (0.8, 0.8)}, tests=TESTS)
    shared, other = one[2:], candidates("b", {1.0: (0.1, 0.1)}, tests=TESTS)
    for row in shared:
        row.request["tuning"]["parts"].append({"id": "b", "candidate": 1, "n": 2, "paths": ["optimizer.lr"]})
    winners = {row["id"]: row["tuning"]["candidates"] for row in rows([*one, *other])}
    assert winners == {"id-a-0.01-0": 2, "id-a-0.1-0": 2}


def test_the_table_says_what_was_chosen() -> None:
    lines = render(rows(sweep()))
    assert lines[0].split()[-1] != "tuned"  # sizes follow
    assert "tuned" in lines[0]
    assert "lr=0.1 (1 of 3)" in lines[1]
    assert "lr=0.01 (1 of 3)" in lines[2]
    assert any("12 trials and 24 epochs went into all of them" in line for line in lines)
    assert not any("dense was not tuned" in line for line in lines)
