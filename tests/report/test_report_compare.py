from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from report_rows import doubted, spec, three_seeds, timing, trial

from sparsefleet.errors import UserError
from sparsefleet.ledger.rows import TimingRow
from sparsefleet.report.compare import rows
from sparsefleet.report.machines import Machines
from sparsefleet.report.speed import theory_columns
from sparsefleet.report.table import render
from sparsefleet.report.timing import Timings
from sparsefleet.report.trust import rankable, untimed, untrustworthy

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
    "stored_bytes",
    "compression",
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
        trial(
            f"p{s}",
            0.9,
            spec=spec(s, density=0.1, layer="csr", method=method, start={"trial": f"id-d{s}", "row": "id-d0", "gives": "weights"}),
            arm="sparse",
            twin_key=f"d{s}",
        )
        for s in range(3)
    ]
    row = sparse_row(rows([*three_seeds()[:3], *trials]))
    assert (row["method"], row["variant"], row["seeds"]) == ("magnitude+cubic+global", "from twin", 3)


def test_an_arm_that_trains_another_rows_mask_says_whose() -> None:
    rigl, static = {"rewirer": {"name": "rigl"}}, {"rewirer": {"name": "static"}}
    start = {"trial": "id-r0", "row": "id-r0", "gives": "mask"}
    trials = [
        trial("d0", 0.9, spec=spec(0)),
        trial("r0", 0.8, spec=spec(0, density=0.1, layer="csr", method={**rigl, "distribution": "erk"}), arm="sparse", twin_key="d0"),
        trial(
            "a0", 0.7, spec=spec(0, density=0.1, layer="csr", method=static, start=start), arm="reinit-mask", twin_key="d0", depends_on="r0"
        ),
    ]
    row = next(row for row in rows(trials) if row["arm"] == "reinit-mask")
    assert (row["method"], row["variant"]) == ("reinit-mask", "of rigl, erk")


def test_accuracy_before_fine_tuning_stands_beside_the_final_one() -> None:
    method = {"pruner": {"name": "magnitude"}, "schedule": {"kind": "one-shot", "at": 0.5}}
    tuned = {**method, "fine_tune": {"optimizer": {"kind": "adam", "lr": 0.001}}}
    trials = [
        trial(
            f"{name}{s}", 0.9, spec=spec(s, density=0.1, layer="csr", method=how), arm="sparse", facts={"before_fine_tuning": 0.5 + 0.1 * s}
        )
        for name, how in (("t", tuned), ("p", method))
        for s in range(3)
    ]
    table = rows(trials)
    assert {row["variant"]: row["before_fine_tuning"] for row in table} == {"fine-tuned by adam": pytest.approx(0.6), "": None}
    assert "before fine-tuning" in "".join(render(table))
    assert "0.6000" in "".join(render(table))


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
    busy = doubted(["s0.1-0"], 9.0)
    row = sparse_row(rows(three_seeds(), [busy, timing(["s0.1-1"], 2.0), timing(["s0.1-2"], 3.0)]))
    assert (row["vs_dense_width"], row["timing_trusted"], row["vs_dense_width_verdict"], row["n_timed"]) == (2.0, True, "FASTER", 3)
    row = sparse_row(rows(three_seeds(), [busy]))
    assert (row["vs_dense_width"], row["timing_trusted"], row["vs_dense_width_verdict"]) == (9.0, False, "NOT_TRUSTWORTHY")
    assert row["timing_reasons"] == ["dense against dense reads 1.061"]


def test_no_better_batch_size_becomes_the_headline() -> None:
    table = rows(three_seeds(), [timing(["s0.1-0"], 0.5), timing(["s0.1-0"], 4.0, batch_size=1), timing(["s0.1-0"], 8.0, op="forward")])
    assert sparse_row(table)["vs_dense_width"] == 0.5
    table = rows(three_seeds(), [timing(["s0.1-0"], 0.5, batch_size=32), timing(["s0.1-0"], 4.0, batch_size=256)])
    assert sparse_row(table)["vs_dense_width"] == 0.5  # the first where the training's own was not measured


def test_a_figure_that_is_not_trusted_orders_nothing() -> None:
    trials = [*three_seeds(0.02), *three_seeds(0.1)[3:], *three_seeds(0.5)[3:]]
    table = rows(trials, [doubted(["s0.02-0"], 9.0), timing(["s0.1-0"], 2.0), timing(["s0.5-0"], 0.5)], by=["vs_dense_width"])
    assert [row["density_asked"] for row in table if row["arm"] == "sparse"] == [0.1, 0.5, 0.02]
    rival = {"rival_s": {"median": 0.01}, "rival_ci95": [1.9, 2.1], "rival_verdict": "NOT_TRUSTWORTHY"}
    table = rows(trials, [timing(["s0.02-0"], 9.0, rival_speedup=9.0, **rival), timing(["s0.1-0"], 2.0)], by=["vs_small_dense"])
    assert all(rankable(row, "vs_small_dense") is None for row in table)


def test_the_dense_rows_step_time_comes_from_trusted_pairs_only() -> None:
    slow = doubted(["s0.1-1"], 2.0, dense_s={"median": 1.0, "p10": 1.0, "p90": 1.0, "mad": 0.0})
    assert rows(three_seeds(), [slow])[0]["step_ms"] is None
    assert rows(three_seeds(), [slow, timing(["s0.1-0"], 2.0)])[0]["step_ms"] == pytest.approx(10.0)


def test_small_dense_memory_and_theory_are_columns() -> None:
    rival = {"rival_s": {"median": 0.004}, "rival_speedup": 0.8, "rival_ci95": [0.79, 0.81], "rival_verdict": "SLOWER"}
    memory = {"peak_bytes": 3 << 20, "dense_peak_bytes": 9 << 20, "peak_kind": "VmHWM", "prepare_peak_bytes": 1 << 20}
    table = rows(three_seeds(), [timing(["s0.1-0"], 2.0, memory=memory, breakeven_calls=310.0, **rival)])
    row = sparse_row(table)
    assert (row["vs_small_dense"], row["vs_small_dense_ci"], row["vs_small_dense_verdict"]) == (0.8, [0.79, 0.81], "SLOWER")
    assert (row["peak_bytes"], row["dense_peak_bytes"], table[0]["peak_bytes"]) == (3 << 20, 9 << 20, 9 << 20)
    assert (row["theoretical_speedup"], row["roofline_speedup"], row["realised_fraction"]) == (10.0, 5.0, pytest.approx(0.2))
    assert (row["breakeven_calls"], row["prepare_s"], row["fraction_of_limit"]) == (310.0, 0.008, 0.1)


def other_machine(**changes: Any) -> TimingRow:
    return replace(timing(["s0.02-0"], 8.0, fingerprint="fp:b", **changes), created="2026-01-01T00:00:00Z", samples_ref="b")


def here(**changes: Any) -> TimingRow:
    return replace(timing(["s0.1-0"], 2.0, **changes), created="2026-01-02T00:00:00Z", samples_ref="a")


def test_timings_of_another_machine_are_not_compared_unasked() -> None:
    trials, timings = [*three_seeds(0.02), *three_seeds(0.1)[3:]], [here(), other_machine()]
    shown = {row["density_asked"]: row for row in rows(trials, timings)}
    assert (shown[0.1]["vs_dense_width"], shown[0.02]["vs_dense_width"], shown[0.02]["timings"]) == (2.0, None, [])
    assert shown[0.02]["other_machines"] == {"fp:b": []}
    asked = {row["density_asked"]: row for row in rows(trials, Timings(timings, Machines(timings, mixed=True)))}
    assert (asked[0.1]["vs_dense_width"], asked[0.02]["vs_dense_width"]) == (2.0, 8.0)
    assert asked[0.02]["other_machines"] == {"fp:b": []}
    assert asked[1.0]["step_ms"] == pytest.approx(10.0)
    newer = [replace(here(), created="2025-01-01T00:00:00Z"), other_machine()]
    assert {row["density_asked"]: row["vs_dense_width"] for row in rows(trials, newer)} == {1.0: None, 0.1: None, 0.02: 8.0}


def test_two_machines_never_share_a_median() -> None:
    timings = [here(), replace(timing(["s0.1-1"], 8.0, fingerprint="fp:b"), created="2026-01-01T00:00:00Z")]
    row = sparse_row(rows(three_seeds(), Timings(timings, Machines(timings, mixed=True))))
    assert (row["vs_dense_width"], row["n_timed"], len(row["timings"])) == (2.0, 1, 2)


def test_what_differs_between_machines_is_read_beside_the_raw_samples() -> None:
    def stable(torch: str) -> dict[str, Any]:
        return {"cpu": {"model": "a cpu"}, "memory_bytes": 1, "gpus": [], "software": {"packages": {"torch": torch}}}

    bodies = {"a": {"id": "fp:a", "stable": stable("2.15.0")}, "b": {"id": "fp:b", "stable": stable("2.14.0")}}
    timings = [here(), other_machine()]
    machines = Machines(timings, lambda ref: json.dumps({"schema": "sf-samples/2", "fingerprint": bodies[ref]}).encode())
    (line,) = machines.differing("fp:b")
    assert "torch" in line
    assert line.index("2.14") < line.index("2.15")
    broken = Machines(timings, lambda ref: b"not json")
    assert broken.differing("fp:b") == []


def test_a_speedup_without_its_circumstances_is_no_headline() -> None:
    row = sparse_row(rows(three_seeds(), [timing(["s0.1-0"], 2.0)]))
    assert row["headline_missing"] == []
    row = sparse_row(rows(three_seeds(), [timing(["s0.1-0"], 2.0, theory={}, dtype="", ci95=None)]))
    assert row["headline_missing"] == ["dtype", "its interval", "the theoretical speed-up"]


def test_what_is_not_trustworthy_is_counted_once() -> None:
    table = rows(
        three_seeds(), [doubted(["s0.1-0", "s0.1-1"], 9.0), timing(["s0.1-0"], 2.0, batch_size=1, rival_verdict="NOT_TRUSTWORTHY")]
    )
    assert [text.split(": ")[0] for text in untrustworthy(table)] == [
        "set csr at density 0.1, step, batch 64",
        "set csr at density 0.1, step, batch 1",
    ]
    assert untimed(table) == []
    assert untimed(rows(three_seeds())) == ["set csr at density 0.1"]
    failed = TimingRow("c", ["s0.1-0"], "INCORRECT", [], None, "output is wrong")
    assert untimed(rows(three_seeds(), [failed])) == ["set csr at density 0.1: INCORRECT: output is wrong"]


def test_compression_stands_in_the_row_and_in_the_table_of_theory() -> None:
    table = rows(three_seeds())
    row = sparse_row(table)
    assert (row["stored_bytes"], row["compression"]) == (round(2048 + 131072 * 0.1), pytest.approx(133120 / 15155.2))
    headings = {column.heading: column.cells for column in theory_columns(table)}
    assert headings["file"][table.index(row)] == "8.78×"


def test_a_record_from_before_there_was_a_compression_has_none() -> None:
    trials = three_seeds()
    for each in trials:
        for name in ("stored_bytes", "compression"):
            each.record["counts"].pop(name)
    assert sparse_row(rows(trials))["compression"] is None
