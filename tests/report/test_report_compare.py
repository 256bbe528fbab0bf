from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings, strategies as st
from report_rows import spec, three_seeds, timing, trial

from sparsefleet.errors import UserError
from sparsefleet.report.compare import rows

COLUMNS = [
    "method",
    "variant",
    "arm",
    "dataset",
    "model",
    "layer",
    "density_asked",
    "density_realised",
    "trials",
    "seeds",
    "n_ok",
    "n_diverged",
    "n_failed",
    "twin",
    "accuracy",
    "accuracy_ci",
    "delta_twin",
    "params",
    "resident_bytes",
    "step_ms",
    "vs_dense_width",
    "vs_dense_width_ci",
]


def sparse_row(table: list[dict]) -> dict:
    return next(row for row in table if row["arm"] == "sparse")


def test_a_row_has_every_promised_column_and_is_json() -> None:
    for row in rows(three_seeds(), [timing(["s0.1-0"], 2.0)]):
        assert not set(COLUMNS) - set(row)
        json.dumps(row, allow_nan=False)


def test_mean_difference_and_interval_by_hand() -> None:
    row = sparse_row(rows(three_seeds()))
    assert row["accuracy"] == pytest.approx(0.91)
    # sd of (0.90, 0.92, 0.91) is 0.01; t(0.975, 2) = 4.302653; half = 4.302653 * 0.01 / sqrt(3) = 0.0248414
    assert row["accuracy_ci"] == pytest.approx((0.91 - 0.0248414, 0.91 + 0.0248414), abs=1e-6)
    # differences -0.03, -0.02, -0.04: mean -0.03, sd 0.01
    assert row["delta_twin"] == pytest.approx(-0.03)
    assert row["delta_twin_ci"] == pytest.approx((-0.0548414, -0.0051586), abs=1e-6)
    assert (row["trials"], row["seeds"], row["n_ok"], row["n_paired"]) == (3, 3, 3, 3)


def test_pairs_go_by_seed_and_not_by_position() -> None:
    shuffled = list(reversed(three_seeds()))
    assert sparse_row(rows(shuffled))["delta_twin_ci"] == pytest.approx((-0.0548414, -0.0051586), abs=1e-6)


def test_the_twin_is_named_by_its_row() -> None:
    table = rows(three_seeds())
    assert sparse_row(table)["twin"] == table[0]["id"] == "id-d0"
    assert table[0]["twin"] is None


def test_a_diverged_seed_counts_as_chance_and_is_shown() -> None:
    row = sparse_row(rows(three_seeds(sparse=(0.9, "DIVERGED", 0.9))))
    assert row["accuracy"] == pytest.approx((0.9 + 0.1 + 0.9) / 3)
    assert (row["n_ok"], row["n_diverged"], row["n_failed"]) == (2, 1, 0)


def test_a_diverged_seed_without_a_record_still_counts_as_chance() -> None:
    trials = three_seeds(sparse=(0.9, 0.9, 0.9))
    last = trials.pop()
    trials.append(trial(last.key, None, state="CRASHED", spec=last.spec, arm="sparse", twin_key="d2"))
    assert sparse_row(rows(trials))["n_failed"] == 1


def test_a_failed_seed_is_counted_and_its_reason_kept() -> None:
    row = sparse_row(rows(three_seeds(sparse=(0.9, "TIMEOUT", 0.9))))
    assert (row["trials"], row["n_ok"], row["n_failed"], row["failures"]) == (3, 2, 1, ["TIMEOUT"])
    assert row["accuracy"] == pytest.approx(0.9)
    assert row["n_paired"] == 2


def test_one_seed_has_no_interval() -> None:
    row = sparse_row(rows(three_seeds(sparse=(0.9,), dense=(0.95,))))
    assert row["accuracy_ci"] is None
    assert row["delta_twin_ci"] is None
    assert row["delta_twin"] == pytest.approx(-0.05)


def test_the_headline_is_the_step_at_the_trainings_batch_size() -> None:
    timings = [timing(["s0.1-1"], 3.0, batch_size=1), timing(["s0.1-1"], 1.5, op="forward"), timing(["s0.1-0", "s0.1-1"], 2.0)]
    table = rows(three_seeds(), timings)
    row = sparse_row(table)
    assert row["vs_dense_width"] == 2.0
    assert row["vs_dense_width_ci"] == pytest.approx([1.96, 2.04])
    assert row["step_ms"] == pytest.approx(5.0)
    assert len(row["timings"]) == 3
    assert table[0]["step_ms"] == pytest.approx(10.0)  # the dense side of the pair
    assert table[0]["vs_dense_width"] is None


@pytest.mark.parametrize("named", ["masked", "csr"])
def test_masked_never_has_a_speedup(named: str) -> None:
    body = {"density": 0.1, "method": {"rewirer": {"name": "set"}}, "layer": named}
    one = trial("m", 0.9, spec=spec(0, **body), arm="sparse", execution="masked_dense")
    row = rows([one], [timing(["m"], 5.0, execution="masked_dense")])[0]
    assert row["vs_dense_width"] is None
    assert row["vs_dense_width_ci"] is None
    assert all(t["speedup"] is None for t in row["timings"])
    assert row["step_ms"] is not None


def test_a_sparse_activation_alone_is_a_method() -> None:
    winners = {"name": "k-winners", "params": {"density": 0.35}}
    twin = trial("d", 0.9, spec=spec(0))
    alone = trial("k", 0.8, spec=spec(0, activation=winners), arm="sparse", twin_key="d")
    both = trial(
        "b",
        0.8,
        arm="sparse",
        twin_key="d",
        spec=spec(0, activation=winners, density=0.1, method={"rewirer": {"name": "set"}}, layer="csr"),
    )
    table = {row["id"]: row for row in rows([twin, alone, both])}
    assert (table["id-k"]["method"], table["id-k"]["variant"]) == ("k-winners", "")
    assert (table["id-b"]["method"], table["id-b"]["variant"]) == ("set", "k-winners")


def test_rows_that_look_alike_are_told_apart() -> None:
    slow = spec(0, density=0.1, layer="csr", method={"rewirer": {"name": "rigl", "params": {"drop_fraction": 0.1}}})
    fast = spec(0, density=0.1, layer="csr", method={"rewirer": {"name": "rigl", "params": {"drop_fraction": 0.5}}})
    table = rows([trial("a", 0.8, spec=slow, arm="sparse"), trial("b", 0.9, spec=fast, arm="sparse")])
    assert [row["setting"] for row in table] == [{"method.rewirer.params.drop_fraction": 0.1}, {"method.rewirer.params.drop_fraction": 0.5}]


def test_the_twins_other_optimizer_is_shown() -> None:
    twin = trial("d", 0.9, spec=spec(0, optimizer={"kind": "sgd", "lr": 0.01}))
    mine = trial("s", 0.8, spec=spec(0, density=0.1, layer="csr", method={"rewirer": {"name": "set"}}), arm="sparse", twin_key="d")
    assert sparse_row(rows([twin, mine]))["twin_differs"] == {"optimizer.lr": [0.1, 0.01]}


def test_order_is_dense_first_then_density() -> None:
    table = rows([*three_seeds(0.02), *three_seeds(0.1)[3:]])
    assert [row["density_asked"] for row in table] == [1.0, 0.1, 0.02]


def test_seeds_of_start_from_share_a_row() -> None:
    method = {"pruner": {"name": "magnitude"}, "schedule": {"kind": "cubic"}, "distribution": "global"}
    trials = [
        trial(f"p{s}", 0.9, spec=spec(s, density=0.1, layer="csr", method=method, start_from=f"id-d{s}"), arm="sparse", twin_key=f"d{s}")
        for s in range(3)
    ]
    row = sparse_row(rows([*three_seeds()[:3], *trials]))
    assert (row["method"], row["variant"], row["seeds"]) == ("magnitude+cubic+global", "from twin", 3)


def test_by_orders_and_adds_keys_of_the_spec() -> None:
    table = rows([*three_seeds(0.02), *three_seeds(0.1)[3:]], by=["layer", "optimizer.lr"])
    assert [row["layer"] for row in table] == ["csr", "csr", "dense"]
    assert {row["optimizer.lr"] for row in table} == {0.1}
    with pytest.raises(UserError, match="no such column"):
        rows(three_seeds(), by=["densty"])


def test_another_metric_adds_columns_and_invents_no_value_for_a_diverged_seed() -> None:
    row = sparse_row(rows(three_seeds(sparse=(0.9, "DIVERGED", 0.9)), metric="test_loss"))
    assert row["test_loss"] == 0.5
    with pytest.raises(UserError, match="unknown metric"):
        rows(three_seeds(), metric="los")


STATES = ["SUCCEEDED", "DIVERGED", "PENDING", "RUNNING", "LEASED", "CANCELLED", "TIMEOUT", "CRASHED", "OOM", "PLUGIN_ERROR", "INFRA_FAILED"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(STATES), st.integers(0, 5), st.sampled_from([0.5, 0.1]), st.floats(0, 1)), min_size=1, max_size=25)
)
def test_no_trial_is_lost_or_counted_twice(drawn: list[tuple[str, int, float, float]]) -> None:
    trials = [
        trial(
            f"t{i}",
            accuracy,
            state=state,
            arm="sparse",
            ordinal=i,
            spec=spec(seed, density=density, layer="csr", method={"rewirer": {"name": "set"}}),
        )
        for i, (state, seed, density, accuracy) in enumerate(drawn)
    ]
    table = rows(trials)
    assert sum(row["trials"] for row in table) == len(drawn)
    assert sum(row["n_ok"] + row["n_diverged"] + row["n_failed"] + row["n_not_run"] for row in table) == len(drawn)
    for row in table:
        assert row["trials"] == row["n_ok"] + row["n_diverged"] + row["n_failed"] + row["n_not_run"]
        assert row["accuracy"] is None or 0 <= row["accuracy"] <= 1


def test_report_imports_nothing_heavy() -> None:
    code = (
        "import sys, sparsefleet.report.compare, sparsefleet.report.table, sparsefleet.report.csv, sparsefleet.report.breakeven;"
        "print([m for m in ('torch', 'ray', 'mlflow', 'numpy', 'scipy', 'pydantic', 'rich', 'click') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_of_several_timings_the_median_trusted_one_is_the_headline() -> None:
    doubted = timing(["s0.1-0"], 9.0)
    doubted.timings[0]["note"] = "not trusted: 1 of 50 rounds kept"
    row = sparse_row(rows(three_seeds(), [doubted, timing(["s0.1-1"], 2.0), timing(["s0.1-2"], 3.0)]))
    assert (row["vs_dense_width"], row["timing_trusted"], row["n_timed"]) == (2.0, True, 3)
    row = sparse_row(rows(three_seeds(), [doubted]))
    assert (row["vs_dense_width"], row["timing_trusted"]) == (9.0, False)
