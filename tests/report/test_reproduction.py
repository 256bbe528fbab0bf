"""A reproduction's rows: judged by what was published, and not judged at all where the run was cut short or changed."""

from __future__ import annotations

from typing import Any

import pytest
from report_rows import spec, trial

from sparsefleet.errors import InvalidGrid, UserError
from sparsefleet.ledger.rows import TrialRow
from sparsefleet.report.reproducing import Judged, judge, label_of
from sparsefleet.report.reproduction import Reproduction, load_reproduction
from sparsefleet.report.reproduction_table import exit_code, render, verdict
from sparsefleet.trial.spec import TrialSpec

SET = {"rewirer": {"name": "set"}}
RIGL = {"rewirer": {"name": "rigl"}}
BUDGET = {
    "dataset": "digits",
    "train.epochs": 2,
    "train.batch_size": 64,
    "train.augment": False,
    "validation": 0.1,
    "steps": 40,
    "n_test": 360,
    "seeds": 2,
}
FIGURE = {"select": {"method": "set", "density": 0.1}, "published": 0.90, "tolerance": 0.02}


def made(*rows: dict[str, Any], **more: Any) -> Reproduction:
    body = {"name": "one", "title": "a table", "source": "a paper", "cost": "little", "grid": "quickstart", "unit": "accuracy"}
    return Reproduction.model_validate({**body, "budget": BUDGET, "rows": list(rows), **more})


def trials(
    *accuracies: float | None, method: dict[str, Any] = SET, density: float = 0.1, facts: Any = None, **changes: Any
) -> list[TrialRow]:
    """One sparse trial per seed; None did not run."""
    found = []
    for seed, accuracy in enumerate(accuracies):
        body = spec(seed, density=density, method=method, layer="csr", **changes)
        key = TrialSpec.model_validate(body).spec_id
        state = "PENDING" if accuracy is None else "SUCCEEDED"
        found.append(trial(key, accuracy, spec=body, arm="sparse", state=state, facts=facts or {}))
    return found


RECIPE = [("sparse", TrialSpec.model_validate(spec(0, density=d, method=m, layer="csr"))) for m in (SET, RIGL) for d in (0.2, 0.1)]


def judged(reproduction: Reproduction, found: list[TrialRow]) -> list[Judged]:
    return judge(reproduction, RECIPE, found)


def test_within_the_tolerance_passes() -> None:
    (row,) = judged(made(FIGURE), trials(0.90, 0.92))
    assert (row.status, row.n, row.reasons) == ("PASS", 2, [])
    assert row.ours == pytest.approx(0.91)
    assert row.gap == pytest.approx(0.01)
    assert row.interval is not None
    assert row.interval[0] < 0.91 < row.interval[1]


@pytest.mark.parametrize(("accuracies", "side"), [((0.80, 0.801), "below by 0.0995"), ((0.99, 0.991), "above by 0.0905")])
def test_outside_fails_on_either_side(accuracies: tuple[float, ...], side: str) -> None:
    (row,) = judged(made(FIGURE), trials(*accuracies))
    assert row.status == "FAIL"
    assert row.reasons == [f"{side}, the tolerance is 0.02"]


def test_a_failure_whose_interval_reaches_the_tolerance_says_so() -> None:
    (row,) = judged(made(FIGURE), trials(0.80, 0.90))
    assert row.status == "FAIL"
    assert "more seeds may decide otherwise" in row.reasons[0]


def test_exactly_the_tolerance_passes() -> None:
    (row,) = judged(made(FIGURE), trials(0.92, 0.92))
    assert row.status == "PASS"


@pytest.mark.parametrize(
    ("changes", "facts", "told"),
    [
        ({"train": {"epochs": 1, "batch_size": 64}}, {}, "train.epochs is 1, published 2"),
        ({"train": {"epochs": 2, "batch_size": 32}}, {}, "train.batch_size is 32, published 64"),
        ({"train": {"epochs": 2, "batch_size": 64, "augment": True}}, {}, "train.augment is true, published false"),
        ({"dataset": {"name": "mnist"}}, {}, "dataset is mnist, published digits"),
        ({"validation": 0.0}, {}, "validation is 0, published 0.1"),
        ({}, {"steps": 20}, "steps is 20, published 40"),  # a subset of the data shows in the steps …
        ({}, {"n_test": 100}, "n_test is 100, published 360"),  # … or in the test set
    ],
)
def test_a_changed_budget_is_never_judged(changes: dict[str, Any], facts: dict[str, Any], told: str) -> None:
    for accuracies in ((0.90, 0.90), (0.10, 0.10)):
        (row,) = judged(made(FIGURE), trials(*accuracies, facts=facts, **changes))
        assert row.status == "UNDER-TRAINED"
        assert told in row.reasons
        assert exit_code([row]) == 6


def test_fewer_seeds_are_under_trained() -> None:
    (row,) = judged(made(FIGURE), trials(0.90, None))
    assert (row.status, row.reasons, row.n) == ("UNDER-TRAINED", ["1 seed, wanted 2"], 1)
    assert judged(made(FIGURE), trials(0.90, 0.90, 0.90))[0].status == "PASS"


def test_a_seed_that_ran_twice_is_one() -> None:
    first = trials(0.90)[0]
    again = trial("on-two-threads", 0.90, spec=first.spec, arm="sparse")
    (row,) = judged(made(FIGURE), [first, again])
    assert (row.status, row.reasons, row.n) == ("UNDER-TRAINED", ["1 seed, wanted 2"], 1)


def test_other_settings_are_altered() -> None:
    (row,) = judged(made(FIGURE), trials(0.90, 0.90, optimizer={"kind": "sgd", "lr": 0.5}))
    assert (row.status, row.reasons) == ("ALTERED", ["optimizer.lr is 0.5, the recipe has 0.1"])
    assert exit_code([row]) == 6


def test_of_several_that_fit_the_recipe_is_taken() -> None:
    found = trials(0.10, 0.10, optimizer={"kind": "sgd", "lr": 0.5}) + trials(0.90, 0.90)
    assert judged(made(FIGURE), found)[0].status == "PASS"


def test_of_several_that_fit_the_whole_training_is_taken() -> None:
    found = trials(0.10, 0.10, train={"epochs": 1, "batch_size": 64}) + trials(0.90, 0.90)
    assert judged(made(FIGURE), found)[0].status == "PASS"


def test_a_parameter_of_a_plugin_that_the_budget_names_is_a_setting_too() -> None:
    reproduction = made(FIGURE, budget={**BUDGET, "model": "mlp", "model.params.hidden": [512]})
    found = trials(0.90, 0.90, model={"name": "mlp", "params": {"hidden": [512], "norm": "batch"}})
    (row,) = judged(reproduction, found)
    assert (row.status, row.reasons) == ("ALTERED", ["model.params.norm is batch, the recipe has –"])
    assert judged(reproduction, trials(0.90, 0.90))[0].status == "PASS"
    (row,) = judged(reproduction, trials(0.90, 0.90, model={"name": "mlp", "params": {"hidden": [9]}}))
    assert (row.status, row.reasons) == ("UNDER-TRAINED", ["model.params.hidden is 9, published 512"])


def test_what_a_trial_starts_from_is_the_recipes_too() -> None:
    """A ticket whose dense twin was trained for one epoch has all settings of the recipe itself."""

    def start(row: str) -> dict[str, str]:
        return {"trial": "of-this-seed", "row": row, "gives": "weights"}

    recipe = [("sparse", TrialSpec.model_validate(spec(0, density=0.1, method=SET, layer="csr", start=start("published"))))]
    assert judge(made(FIGURE), recipe, trials(0.90, 0.90, start=start("published")))[0].status == "PASS"
    (row,) = judge(made(FIGURE), recipe, trials(0.90, 0.90, start=start("another")))
    assert (row.status, row.reasons) == ("ALTERED", ["the trial that it starts from is not the recipe's"])
    (row,) = judge(made(FIGURE), recipe, trials(0.90, 0.90, start=start("another"), train={"epochs": 1, "batch_size": 64}))
    assert row.reasons == ["train.epochs is 1, published 2"]


def test_what_is_not_there_is_not_run() -> None:
    (row,) = judged(made(FIGURE), trials(0.90, 0.90, density=0.2))
    assert (row.status, row.reasons) == ("NOT RUN", ["no such trial in this sweep"])
    (row,) = judged(made(FIGURE), trials(None, None))
    assert (row.status, row.reasons) == ("NOT RUN", ["pending"])
    assert exit_code([row]) == 6


def test_a_diverged_seed_counts_as_chance() -> None:
    good, bad = trials(0.90, 0.90)
    bad = trial(bad.key, None, spec=bad.spec, arm="sparse", state="DIVERGED")
    (row,) = judged(made(FIGURE), [good, bad])
    assert row.by_seed == [0.90, pytest.approx(0.1)]
    assert row.status == "FAIL"


@pytest.mark.parametrize(("unit", "published", "ours"), [("accuracy %", 90.5, 91.0), ("error %", 9.5, 9.0)])
def test_figures_are_told_in_the_published_unit(unit: str, published: float, ours: float) -> None:
    (row,) = judged(made({**FIGURE, "published": published, "tolerance": 0.6, "unit": unit}), trials(0.90, 0.92))
    assert row.ours == pytest.approx(ours)
    assert row.status == "PASS"
    assert judged(made({**FIGURE, "published": published, "tolerance": 0.4, "unit": unit}), trials(0.90, 0.92))[0].status == "FAIL"


def order(**more: Any) -> dict[str, Any]:
    return {"lower": {"method": "set", "density": 0.1}, "higher": {"method": "rigl", "density": 0.1}, **more}


@pytest.mark.parametrize(
    ("rigl", "strict", "status", "reason"),
    [
        ((0.95, 0.96), True, "PASS", None),
        ((0.85, 0.86), True, "FAIL", "refuted"),
        ((0.80, 0.99), True, "FAIL", "not shown: the interval of the difference holds 0"),
        ((0.80, 0.99), False, "PASS", "not refuted; no difference is shown either"),
        ((0.85, 0.86), False, "FAIL", "refuted"),
    ],
)
def test_an_order_is_shown_refuted_or_open(rigl: tuple[float, ...], strict: bool, status: str, reason: str | None) -> None:
    (row,) = judged(made(order(strict=strict)), trials(0.90, 0.905) + trials(*rigl, method=RIGL))
    assert row.status == status
    assert row.reasons == ([reason] if reason else [])


def test_seeds_are_paired() -> None:
    """Seeds differ by far more than the methods do, and the order shows all the same."""
    (row,) = judged(made(order()), trials(0.50, 0.90) + trials(0.51, 0.911, method=RIGL))
    assert row.by_seed == [pytest.approx(0.01), pytest.approx(0.011)]
    assert row.status == "PASS"


def test_a_gap_that_grows() -> None:
    than = {"lower": {"method": "set", "density": 0.2}, "higher": {"method": "rigl", "density": 0.2}}
    wide = trials(0.90, 0.90) + trials(0.950, 0.951, method=RIGL)
    narrow = trials(0.94, 0.94, density=0.2) + trials(0.950, 0.951, method=RIGL, density=0.2)
    (row,) = judged(made(order(than=than)), wide + narrow)
    assert row.ours == pytest.approx(0.04)
    assert row.status == "PASS"
    swapped = {
        "lower": {"method": "set", "density": 0.2},
        "higher": {"method": "rigl", "density": 0.2},
        "than": {"lower": {"method": "set", "density": 0.1}, "higher": {"method": "rigl", "density": 0.1}},
    }
    assert judged(made(swapped), wide + narrow)[0].status == "FAIL"


def test_an_order_of_a_curve() -> None:
    found = trials(0.9, 0.9) + trials(0.9, 0.9, method=RIGL)
    for one, last in zip(found, (0.1, 0.2, 0.3, 0.4), strict=True):
        assert one.record is not None
        one.record["curves"] = {"explored_fraction": {"steps": [0, 40], "values": [0.05, last]}}
    (row,) = judged(made(order(metric="explored_fraction")), found)
    assert row.by_seed == [pytest.approx(0.2), pytest.approx(0.2)]
    assert row.status == "PASS"


def test_an_order_with_an_under_trained_side_is_not_judged() -> None:
    (row,) = judged(made(order()), trials(0.90, 0.905, train={"epochs": 1, "batch_size": 64}) + trials(0.95, 0.96, method=RIGL))
    assert row.status == "UNDER-TRAINED"
    assert row.reasons == ["set 0.1: train.epochs is 1, published 2"]


def test_an_order_has_its_seeds_on_both_sides() -> None:
    """Two seeds each, and one in common: a difference of one seed is no order of two."""
    later = [one for one in trials(0.0, 0.95, 0.96, method=RIGL) if one.spec["seed"] > 0]
    (row,) = judged(made(order()), trials(0.90, 0.905) + later)
    assert (row.status, row.n, row.reasons) == ("UNDER-TRAINED", 1, ["1 of 2 seeds have accuracy on both sides"])


def test_an_order_of_a_curve_lacks_what_diverged() -> None:
    found = trials(0.9, 0.9) + trials(0.9, 0.9, method=RIGL)
    for one, last in zip(found, (0.1, 0.2, 0.3, 0.4), strict=True):
        assert one.record is not None
        one.record["curves"] = {"explored_fraction": {"steps": [40], "values": [last]}}
    found[3] = trial(found[3].key, None, spec=found[3].spec, arm="sparse", state="DIVERGED")
    (row,) = judged(made(order(metric="explored_fraction")), found)
    assert (row.status, row.reasons) == ("UNDER-TRAINED", ["1 of 2 seeds have explored_fraction on both sides"])


def test_an_order_without_a_side_says_what_is_missing_once() -> None:
    (row,) = judged(made(order()), trials(0.90, 0.905))
    assert (row.status, row.reasons) == ("NOT RUN", ["no such trial in this sweep"])
    found = trials(0.9, 0.9) + trials(0.9, 0.9, method=RIGL)
    (row,) = judged(made(order(metric="explored_fraction")), found)
    assert (row.status, row.reasons) == ("NOT RUN", ["no seed has explored_fraction on both sides"])


def test_exit_codes() -> None:
    def one(status: Any) -> Judged:
        return Judged("x", status, [], "accuracy")

    assert exit_code([one("PASS"), one("PASS")]) == 0
    assert exit_code([one("PASS"), one("FAIL")]) == 5
    for status in ("UNDER-TRAINED", "ALTERED", "NOT RUN"):
        assert exit_code([one("PASS"), one("FAIL"), one(status)]) == 6
    assert verdict([one("PASS"), one("FAIL")]) == "1 PASS, 1 FAIL: run as published, and not reproduced"
    assert verdict([one("UNDER-TRAINED")]) == "1 UNDER-TRAINED: this is not a reproduction"


def test_the_text_has_ours_beside_theirs_and_what_differs() -> None:
    reproduction = made({**FIGURE, "se": 0.0004}, order(), differs=["their momentum"], because="a reason")
    lines = render(reproduction, judged(reproduction, trials(0.90, 0.92) + trials(0.95, 0.971, method=RIGL)))
    text = "\n".join(lines)
    assert "set 0.1  0.9000 (SE 0.0004)" in text
    assert "0.9100 [" in text
    assert "set 0.1 < rigl 0.1" in text
    assert "tolerance: a reason" in lines
    assert "differs: their momentum" in lines
    assert lines[-1] == "2 PASS: reproduced"


def test_labels_say_what_tells_rows_apart() -> None:
    assert label_of({"method": "rigl", "density": 0.5, "train.epochs": 250}) == "rigl 0.5 (epochs 250)"
    assert label_of({"arm": "dense"}) == "dense"
    assert label_of({"arm": "shuffled-mask", "density": 0.02}) == "shuffled-mask 0.02"


def test_rows_inherit_and_may_replace_parts_of_the_budget() -> None:
    plain, own = made(FIGURE, {**FIGURE, "budget": {"train.epochs": 9}}, tolerance=0.5).rows
    assert plain.budget == BUDGET
    assert own.budget == {**BUDGET, "train.epochs": 9}


def test_bad_files_are_one_message(tmp_path: Any) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("name: x\nrows: [{select: {method: set}, published: 1, tolerance: -1}]\n")
    with pytest.raises(InvalidGrid) as caught:
        load_reproduction(str(path))
    text = str(caught.value)
    assert "title" in text
    assert "tolerance" in text
    with pytest.raises(UserError, match="no reproduction 'lenet'") as unknown:
        load_reproduction("lenet")
    assert "lenet-300-100" in str(unknown.value.fix)
