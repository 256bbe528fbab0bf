from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from report_rows import spec, trial

from sparsefleet.ledger.rows import TrialRow
from sparsefleet.report.accuracy import Budget, claim_of, too_good
from sparsefleet.report.claims import claim
from sparsefleet.report.compare import rows
from sparsefleet.report.csv import to_csv
from sparsefleet.report.table import render

DENSE = (0.93, 0.94, 0.95, 0.94, 0.93)
SET: dict[str, Any] = {"density": 0.1, "method": {"rewirer": {"name": "set"}}, "layer": "csr"}


def sweep(sparse: tuple[Any, ...], dense: tuple[float, ...] = DENSE, rival: tuple[float, ...] = (), **named: Any) -> list[TrialRow]:
    """A twin, SET on csr and, if given, small-dense: a trial per seed each; ``named`` goes to the sparse trials."""
    found = [trial(f"d{s}", v, spec=spec(s), ordinal=s) for s, v in enumerate(dense)]
    params = {"layer": "dense", "narrow_to_density": 0.1}
    found += [trial(f"r{s}", v, spec=spec(s, **params), arm="small-dense", twin_key=f"d{s}", ordinal=20 + s) for s, v in enumerate(rival)]
    for s, value in enumerate(sparse):
        state = value if isinstance(value, str) else "SUCCEEDED"
        rivals = {"rival_key": f"r{s}"} if rival else {}
        given = {"spec": spec(s, **SET), "arm": "sparse", "twin_key": f"d{s}", "ordinal": 10 + s, **rivals, **named}
        found.append(trial(f"s{s}", None if isinstance(value, str) else value, state=state, **given))
    for one in found:  # small-dense as small as the sparse network
        if one.arm == "small-dense" and one.record:
            one.record["counts"]["params"] = round(32768 * 0.1) + 522
    return found


def sparse_row(trials: list[TrialRow], **named: Any) -> dict[str, Any]:
    return next(row for row in rows(trials, **named) if row["arm"] == "sparse")


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [
        ([0.001, 0.0, 0.002, 0.001, 0.0], "ACC_HELD"),
        ([-0.002, -0.001, -0.003, -0.002, -0.0015], "ACC_HELD"),  # worse for certain, but by less than the margin
        ([-0.02, -0.021, -0.019, -0.02, -0.022], "ACC_LOST"),
        ([-0.02, 0.02, -0.01, 0.01, 0.0], "ACC_UNCLEAR"),
    ],
)
def test_verdicts_by_the_margin(gaps: list[float], verdict: str) -> None:
    found = claim_of(gaps, metric="top1", margin=None)
    assert (found.verdict, found.reason, found.n) == (verdict, "", 5)
    assert found.p_not_worse is not None
    assert (found.p_not_worse > 0.975) == (verdict == "ACC_HELD")
    assert (found.p_not_worse < 0.025) == (verdict == "ACC_LOST")


def test_the_margin_is_a_choice() -> None:
    gaps = [-0.02, -0.021, -0.019, -0.02, -0.022]
    assert claim_of(gaps, metric="top1", margin=0.03).verdict == "ACC_HELD"
    assert claim_of(gaps, metric="top1", margin=0.0).verdict == "ACC_LOST"


def test_below_five_pairs_nothing_is_claimed() -> None:
    found = claim_of([0.01, 0.01, 0.02], metric="top1", margin=None)
    assert (found.verdict, found.reason) == ("NO_CLAIM", "3 paired seeds; a claim needs 5")
    assert found.ci is not None
    assert claim_of([0.01], metric="top1", margin=None).reason == "1 paired seed; a claim needs 5"


def test_equal_differences_claim_nothing() -> None:
    found = claim_of([0.01] * 6, metric="top1", margin=None)
    assert (found.verdict, found.ci, found.p_not_worse) == ("NO_CLAIM", None, None)
    assert "all 6 differences are equal" in found.reason


def test_an_error_is_better_low_and_has_no_default_margin() -> None:
    gaps = [1.0, 1.1, 0.9, 1.0, 1.05]  # our mean squared error is one higher
    assert claim_of(gaps, metric="mse", margin=None).verdict == "NO_CLAIM"
    assert "no default margin" in claim_of(gaps, metric="mse", margin=None).reason
    assert claim_of(gaps, metric="mse", margin=0.5).verdict == "ACC_LOST"
    assert claim_of(gaps, metric="mse", margin=2.0).verdict == "ACC_HELD"
    assert claim_of([-g for g in gaps], metric="mse", margin=0.5).verdict == "ACC_HELD"


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(-0.1, 0.1, allow_subnormal=False), max_size=14), st.sampled_from([None, 0.0, 0.05]))
def test_a_verdict_is_what_the_interval_says(gaps: list[float], margin: float | None) -> None:
    found = claim_of(gaps, metric="top1", margin=margin)
    limit = 0.005 if margin is None else margin
    if len(gaps) < 5 or found.ci is None:
        assert (found.verdict, bool(found.reason)) == ("NO_CLAIM", True)
    else:
        expected = "ACC_HELD" if found.ci[0] > -limit else "ACC_LOST" if found.ci[1] < -limit else "ACC_UNCLEAR"
        assert (found.verdict, found.reason) == (expected, "")


def test_a_row_has_both_baselines() -> None:
    row = sparse_row(sweep((0.94, 0.95, 0.96, 0.95, 0.945), rival=(0.80, 0.81, 0.80, 0.82, 0.80)))
    assert (row["acc_verdict"], row["acc_verdict_rival"], row["n_paired_rival"]) == ("ACC_HELD", "ACC_HELD", 5)
    assert row["delta_twin_iqm"] == pytest.approx(0.01)  # 0.01 0.01 0.01 0.01 0.015 without the ends
    assert row["accuracy_iqm"] == pytest.approx((0.945 + 0.95 + 0.95) / 3)
    assert row["p_not_worse"] > 0.99
    assert row["rival_params"] == row["params"]


def test_a_dense_row_is_compared_with_nothing() -> None:
    dense = rows(sweep((0.9,) * 5))[0]
    assert (dense["acc_verdict"], dense["acc_reason"], dense["too_good"], dense["unequal_budget"]) == (None, "", False, {})


def test_small_dense_that_is_not_as_small_is_no_rival() -> None:
    trials = sweep((0.94, 0.95, 0.96, 0.95, 0.945), rival=(0.80, 0.81, 0.80, 0.82, 0.80))
    for one in trials:
        if one.arm == "small-dense" and one.record:
            one.record["counts"]["params"] = 3900
    row = sparse_row(trials)
    assert row["acc_verdict_rival"] == "NO_CLAIM"
    assert "3,900 parameters and this 3,799" in row["acc_reason_rival"]
    assert row["acc_verdict"] == "ACC_HELD"
    assert any("widths are whole numbers" in line for line in render(rows(trials)))


def test_diverged_seeds_count_as_chance_against_the_claim() -> None:
    row = sparse_row(sweep((0.94, 0.95, 0.96, "DIVERGED", 0.945)))
    assert row["delta_twin"] == pytest.approx((0.01 + 0.01 + 0.01 + (0.1 - 0.94) + 0.015) / 5)
    assert (row["n_paired"], row["acc_verdict"]) == (5, "ACC_UNCLEAR")


def test_a_failed_seed_is_no_reason_to_claim_by_the_others() -> None:
    row = sparse_row(sweep((0.94, 0.95, 0.96, 0.95, 0.945, "CRASHED"), dense=(*DENSE, 0.94)))
    assert (row["n_paired"], row["acc_verdict"], row["acc_reason"]) == (5, "NO_CLAIM", "1 of 6 trials have no figure")


def test_a_test_set_that_was_used_twice_is_refused() -> None:
    trials = sweep((0.94, 0.95, 0.96, 0.95), facts={})
    trials.append(trial("s4", 0.99, spec=spec(4, **SET), arm="sparse", twin_key="d4", facts={"test_evals": 2}))
    row = sparse_row(trials)
    assert row["accuracy"] == pytest.approx(0.95)
    assert (row["n_failed"], row["acc_verdict"]) == (1, "NO_CLAIM")
    assert row["failures"] == ["INVALID: the test set was evaluated 2 times, which is allowed once"]


def test_a_seed_that_stands_twice_claims_nothing() -> None:
    trials = sweep((0.94, 0.95, 0.96, 0.95, 0.945))
    trials.append(trial("again", 0.95, spec=spec(3, **SET), arm="sparse", twin_key="d3", ordinal=30))
    row = sparse_row(trials)
    assert (row["repeated_seeds"], row["acc_verdict"], row["acc_reason"]) == ([3], "NO_CLAIM", "seed 3 stands twice")
    assert any("seed 3 stands twice" in line for line in render(rows(trials)))


def test_unequal_budgets_are_told_with_both_numbers() -> None:
    trials = sweep((0.94,) * 5, rival=(0.9,) * 5)
    for one in trials:
        if one.arm == "sparse" and one.record:
            one.record["accuracy"].update(epochs=3, steps=60)
    row = sparse_row(trials)
    expected = {"epochs": [3, 2], "steps": [60, 40], "samples": [3840, 2560], "tuning_epochs": [3, 2]}
    assert row["unequal_budget"] == row["unequal_budget_rival"] == expected
    assert any(line.startswith("unequal budget, 3 epochs, its twin 2; 60 steps, its twin 40") for line in render(rows(trials)))
    assert sparse_row(sweep((0.94,) * 5))["unequal_budget"] == {}


def test_the_training_of_the_network_that_was_pruned_counts() -> None:
    row = sparse_row(sweep((0.94, 0.95, 0.96, 0.95, 0.945), depends_on="d0"))
    assert row["unequal_budget"]["epochs"] == [4.0, 2]


def test_the_training_of_all_levels_of_a_lottery_counts() -> None:
    """The third level has the dense twin, the first two levels and its own training behind it."""
    trials = sweep((0.94,) * 5)
    dense, ours = ([one for one in trials if one.arm == arm] for arm in ("dense", "sparse"))
    chain = [replace(ours[0], depends_on=dense[0].key)]
    for level in (2, 3):
        spec = {**ours[0].spec, "density": ours[0].spec["density"] / level}
        chain.append(replace(ours[0], key=f"level{level}", spec_id=f"level{level}", spec=spec, depends_on=chain[-1].key))
    told = {row["id"]: row["unequal_budget"]["epochs"] for row in rows([*dense, *chain]) if row["arm"] == "sparse"}
    assert told == {ours[0].spec_id: [4.0, 2], "level2": [6.0, 2], "level3": [8.0, 2]}


def test_only_figures_of_both_sides_are_compared() -> None:
    assert Budget(1, 2, None, None, 2).against(Budget(1, 2, 40, 2560, 2)) == {}


def test_too_good_is_three_deviations_of_dense() -> None:
    assert too_good(0.04, [0.90, 0.91, 0.92], metric="top1", n_test=360)  # sd 0.01
    assert not too_good(0.029, [0.90, 0.91, 0.92], metric="top1", n_test=360)
    assert not too_good(-0.04, [0.90, 0.91, 0.92], metric="top1", n_test=360)
    assert too_good(-0.04, [0.90, 0.91, 0.92], metric="mse", n_test=360)
    assert not too_good(0.04, [0.90, 0.91], metric="top1", n_test=360)  # two seeds tell no spread
    assert not too_good(0.002, [0.9, 0.9, 0.9], metric="top1", n_test=1000)  # less than three test examples
    assert not too_good(None, [0.9, 0.91, 0.92], metric="top1", n_test=None)
    table = rows(sweep((0.999,) * 5, dense=(0.930, 0.931, 0.929, 0.930, 0.932)))
    assert next(row for row in table if row["arm"] == "sparse")["too_good"]
    assert any(line.startswith("check by hand: set at density 0.1") for line in render(table))


def test_a_dense_net_that_does_not_fit_says_why_there_is_no_verdict() -> None:
    alone = [trial("s", 0.9, spec=spec(0, **SET), arm="sparse", request={"dense_infeasible": "needs 3.6 TiB", "no_rival": "rigid"})]
    row = sparse_row(alone)
    assert (row["acc_verdict"], row["acc_reason"]) == ("NO_CLAIM", "dense infeasible: needs 3.6 TiB")
    assert row["acc_reason_rival"] == "no small-dense: rigid"
    lines = render(rows(alone))
    assert "Δ dense" in lines[0]
    assert "dense infeasible" in lines[1]
    assert "dense infeasible: needs 3.6 TiB: set at density 0.1" in lines


def test_the_table_shows_verdicts_from_five_seeds_on() -> None:
    many = render(rows(sweep((0.94, 0.95, 0.96, 0.95, 0.945), rival=(0.9, 0.91, 0.9, 0.92, 0.9))))
    assert "Δ small-dense [95 % CI]" in many[0]
    assert "acc vs dense" in many[0]
    assert "acc vs small-dense" in many[0]
    assert any("ACC_HELD" in line for line in many[1:4])
    few = render(rows(sweep((0.94, 0.95, 0.96))))
    assert "acc vs" not in few[0]
    assert any("no small-dense was trained" in line for line in few)
    assert any("dense was not tuned" in line for line in few)


def test_the_line_of_claims_counts_verdicts() -> None:
    assert claim(rows(sweep((0.94, 0.95, 0.96, 0.95, 0.945)))).startswith("accuracy against dense: held in 1 row;")
    assert "a claim needs 5" in claim(rows(sweep((0.94, 0.95, 0.945))))


def test_csv_has_every_field() -> None:
    heading = to_csv(rows(sweep((0.94, 0.95, 0.96, 0.95, 0.945)))).splitlines()[0].split(",")
    wanted = {"accuracy_iqm", "delta_twin_iqm", "p_not_worse", "acc_verdict", "acc_reason", "p_not_worse_rival", "acc_verdict_rival"}
    assert not (wanted | {"unequal_budget", "too_good", "tuning", "twin_tuned", "delta_rival_iqm"}) - set(heading)
