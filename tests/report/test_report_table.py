from __future__ import annotations

import csv
import io
from dataclasses import replace
from typing import Any

import pytest
from report_rows import doubted, spec, three_seeds, timing, trial

from sparsefleet.ledger.rows import TrialRow
from sparsefleet.report.breakeven import crossing, sentences
from sparsefleet.report.claims import claim
from sparsefleet.report.compare import rows
from sparsefleet.report.csv import cell, to_csv
from sparsefleet.report.labels import settings
from sparsefleet.report.layout import Column, markdown_lines, text_lines
from sparsefleet.report.machines import Machines
from sparsefleet.report.plain import plain
from sparsefleet.report.table import render, render_markdown
from sparsefleet.report.timing import Timings


def test_columns_line_up() -> None:
    assert text_lines([Column("a", ["xyz", "é"]), Column("n", ["1", "10"], right=True)]) == ["a     n", "xyz   1", "é    10"]


RIVAL = {"rival_s": {"median": 0.004}, "rival_speedup": 0.8, "rival_ci95": [0.79, 0.81], "rival_verdict": "SLOWER", "rival_params": 1200}
MEMORY = {"peak_bytes": 3 << 20, "dense_peak_bytes": 9 << 20, "peak_kind": "VmHWM"}


def two_densities() -> list[TrialRow]:
    return [*three_seeds(0.1), *three_seeds(0.02, sparse=(0.88, 0.87, 0.89))[3:]]


def test_the_table_reads_like_this() -> None:
    timings = [timing(["s0.1-0"], 0.5, memory=MEMORY), timing(["s0.02-0"], 2.0, memory=MEMORY, **RIVAL)]
    lines = render(rows(two_densities(), timings))
    assert [line.partition("[−0.")[0][:44].rstrip() for line in lines[1:4]] == [
        "1        dense   dense  0.940 ± 0.025",
        "0.1      set     csr    0.910 ± 0.025",
        "0.02     set     csr    0.880 ± 0.025",
    ]
    assert "vs dense [95 % CI]" in lines[0]
    assert "vs small-dense [95 % CI]" in lines[0]
    assert "0.50× [0.49, 0.51] SLOWER" in lines[2]
    assert "2.00× [1.96, 2.04] FASTER  0.80× [0.79, 0.81] SLOWER" in lines[3]
    assert "timed: whole training step, batch 64, float32, cpu:test, 1 thread, against dense_eager" in lines
    assert not any("screen" in line for line in lines)


def test_a_density_that_a_layer_cannot_hold_exactly_is_shown_beside_the_one_asked() -> None:
    table = rows(two_densities())
    held = {0.1: 0.1009, 0.02: 0.0207}
    lines = render([{**row, "density_realised": held.get(row["density_asked"], row["density_realised"])} for row in table])
    assert [line.split("  ")[0] for line in lines[1:4]] == ["1", "0.1", "0.02 (is 0.0207)"]
    small = {**table[1], "arm": "small-dense", "density_realised": 1.0}  # narrowed, and every weight of it there
    assert render([table[0], small])[2].startswith("0.1  ")


def test_a_plugin_in_the_setting_reads_as_a_plugin() -> None:
    values = {"connectivity.name": "blocks", "connectivity.params.exponent": None, "connectivity.params.size": 8, "train.epochs": 3}
    assert settings(values) == "connectivity=blocks(size=8), train.epochs=3"
    assert settings({"connectivity.name": "random", "connectivity.params": {}}) == "connectivity=random"
    assert settings({"connectivity.params.size": 8, "method.rewirer.params.every": 5}) == "connectivity.size=8, rewirer.every=5"


def test_a_figure_that_is_not_trusted_is_struck_out() -> None:
    table = rows(two_densities(), [doubted(["s0.1-0"], 9.0), timing(["s0.02-0"], 2.0)])
    text, markdown = "\n".join(render(table)), render_markdown(table)
    assert "(9.00×) NOT_TRUSTWORTHY" in text
    assert "(1.11)" in text  # its step time
    assert "~~9.00×~~ NOT\\_TRUSTWORTHY" in markdown
    for page in (text, markdown):
        assert "1 of 2 timings are NOT_TRUSTWORTHY" in page
        assert "not trustworthy: set csr at density 0.1, step, batch 64: dense against dense reads 1.061" in page
        assert "8.82" not in page  # no bound of it


def test_many_reasons_are_shortened_and_all_in_json() -> None:
    trials = [*three_seeds(0.1), *(t for d in (0.5, 0.4, 0.3, 0.2) for t in three_seeds(d)[3:])]
    table = rows(trials, [doubted([f"s{d}-0"], 9.0, f"reason {d}") for d in (0.5, 0.4, 0.3, 0.2, 0.1)])
    lines = [line for line in render(table) if line.startswith("not trustworthy:")]
    assert lines[-1] == "not trustworthy: and 2 more (compare --json)"
    assert len(lines) == 4
    assert sorted(row["timing_reasons"] for row in table if row["timing_reasons"]) == [[f"reason {d}"] for d in (0.1, 0.2, 0.3, 0.4, 0.5)]


def test_screen_level_is_said() -> None:
    table = rows(three_seeds(), [timing(["s0.1-0"], 2.0, level="screen")])
    assert any(line.startswith("screen level: for choosing what to measure properly") for line in render(table))


def test_every_timing_has_a_line_and_none_is_picked() -> None:
    timings = [timing(["s0.1-0"], 0.5), timing(["s0.1-0"], 4.0, batch_size=1), doubted(["s0.1-0"], 8.0, op="forward")]
    lines = render(rows(three_seeds(), timings))
    start = next(i for i, line in enumerate(lines) if " op " in line)
    found = [line.split() for line in lines[start + 1 : start + 4]]
    assert [words[3:5] for words in found] == [["step", "64"], ["step", "1"], ["forward", "64"]]
    assert [next(w for w in words if "×" in w) for words in found] == ["0.50×", "4.00×", "(8.00×)"]
    assert lines[start - 1] == ""
    assert lines[2].count("×") == 1


def test_many_timings_do_not_scroll_the_comparison_away() -> None:
    table = rows(three_seeds(), [timing(["s0.1-0"], 0.5, batch_size=n) for n in range(1, 26)])
    assert "25 timings in all, at other ops and batch sizes too: compare --timings has a line for each" in render(table)
    assert sum("0.50×" in line for line in render(table)) == 1
    assert sum("0.50×" in line for line in render(table, every=True)) == 26
    assert render_markdown(table).count("0.50×") == 26


def test_a_speedup_without_its_circumstances_is_not_printed() -> None:
    lines = render(rows(three_seeds(), [timing(["s0.1-0"], 2.0, theory={}, **RIVAL)]))
    assert not any("2.00×" in line or "0.80×" in line for line in lines)
    assert "no speed-up is printed for set csr at density 0.1 without the theoretical speed-up" in lines


def test_a_timing_without_any_kept_round_says_so_where_the_figure_would_stand() -> None:
    nothing = {"verdict": "NOT_TRUSTWORTHY", "reasons": ["0 of 50 rounds kept"], "rival_verdict": "NOT_TRUSTWORTHY"}
    lines = render(rows(three_seeds(), [timing(["s0.1-0"], None, **nothing)]))
    assert lines[2].count("NOT_TRUSTWORTHY") == 2
    assert "1 of 1 timings are NOT_TRUSTWORTHY" in "\n".join(lines)


def test_a_baseline_that_could_not_be_tried_is_said_and_a_slower_one_is_not() -> None:
    def tried(median_s: float | None, why_not: str) -> dict[str, Any]:
        eager = {"name": "dense_eager", "median_s": 0.01, "compile_s": None, "why_not": ""}
        return {"baselines_tried": [eager, {"name": "dense_compiled", "median_s": median_s, "compile_s": None, "why_not": why_not}]}

    lines = render(rows(three_seeds(), [timing(["s0.1-0"], 2.0, **tried(None, "does not compile here: no compiler"))]))
    assert "no dense_compiled: does not compile here: no compiler" in lines
    lines = render(rows(three_seeds(), [timing(["s0.1-0"], 2.0, **tried(0.02, "slower"))]))
    assert not any("dense_compiled" in line for line in lines)


def test_a_dense_net_that_does_not_fit_is_a_value() -> None:
    alone = {"dense_s": {}, "baseline": "none", "note": "dense infeasible: two copies need 30.0 GiB, 4.0 GiB are free"}
    lines = render(rows(three_seeds(), [timing(["s0.1-0"], None, **alone)]))
    assert "dense infeasible" in lines[2]
    assert "set csr at density 0.1: dense infeasible: two copies need 30.0 GiB, 4.0 GiB are free" in lines


def test_theory_is_shown_beside_what_was_measured() -> None:
    table = rows(three_seeds(), [timing(["s0.1-0"], 2.0, breakeven_calls=310.0, method_share=0.04)])
    lines = render(table, theory=True)
    start = next(i for i, line in enumerate(lines) if "roofline" in line)
    assert lines[start + 2].split()[3:] == ["8.78×", "10.00×", "5.00×", "5.00×", "2.00×", "20", "%", "10", "%", "4", "%", "8.00", "310"]
    assert (
        "the speed-up in theory, by counted FLOPs 10.00×, by this machine's limits 5.00× (compare --theory sets it beside the measured one)"
        in lines
    )
    assert "step times include the rewiring, spread over all steps: up to 4 % of the step" in lines
    assert not any("roofline" in line for line in render(table))


def test_other_machines_are_said() -> None:
    timings = [
        replace(timing(["s0.1-0"], 2.0), created="2026-01-02T00:00:00Z"),
        replace(timing(["s0.02-0"], 8.0, fingerprint="fp:b"), created="2026-01-01T00:00:00Z"),
    ]
    lines = render(rows(two_densities(), timings))
    assert "1 row was timed on another machine (fp:b): not compared; --allow-cross-machine shows them" in lines
    assert not any("8.00×" in line for line in lines)
    mixed = Timings(timings, Machines(timings, mixed=True))
    lines = render(rows(two_densities(), mixed))
    assert any("fp:b" in line and "not to be compared" in line for line in lines)
    assert all("not bracketed" in line for line in sentences(rows(two_densities(), mixed)))


def test_trouble_is_shown() -> None:
    text = "\n".join(render(rows(three_seeds(sparse=(0.9, "DIVERGED", "TIMEOUT")))))
    assert "n=2, 1 diverged, 1 failed" in text
    assert "1 diverged trial counts as chance accuracy" in text
    assert "failed: set at density 0.1: TIMEOUT" in text


def test_two_models_of_one_name_are_told_apart_by_what_differs() -> None:
    wide = trial("w", 0.9, spec=spec(0, model={"name": "mlp", "params": {"hidden": [8192]}}))
    text = "\n".join(render(rows([*three_seeds(), wide])))
    assert "mlp hidden=512" in text
    assert "mlp hidden=8192" in text


def test_no_trials() -> None:
    assert render([]) == ["no trials"]
    assert to_csv([]) == ""


HOSTILE = ["\x1b[31mred\x1b[0m", "\x1b]0;title\x07x", "a\x00b\x9b2Jc", "\u202egnp.exe", "a\nb", "x\x1bPq\x1b\\y"]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_but_printable_text(text: str) -> None:
    assert plain(text).isprintable()
    assert "[31m" not in plain(text)
    assert "title" not in plain(text)


def test_hostile_names_reach_neither_terminal_nor_html() -> None:
    evil = trial("e", 0.9, spec={**spec(0), "model": {"name": "\x1b[2J<script>|x", "params": {}}})
    table = rows([*three_seeds(), evil])
    assert all(line.isprintable() for line in render(table))
    markdown = render_markdown(table)
    assert "<script>" not in markdown
    assert "\\|x" in markdown
    assert len({line.count("|") - line.count("\\|") for line in markdown.splitlines() if line.startswith("|")}) == 1


def test_markdown_escapes() -> None:
    assert markdown_lines([Column("a|b", ["*x*"], right=True)]) == ["| a\\|b |", "| ---: |", "| \\*x\\* |"]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", " =1", "\t=cmd"])
def test_text_never_becomes_a_formula(text: str) -> None:
    assert cell(text).startswith("'")


@pytest.mark.parametrize("value", [-0.03, 1, None, True, 1e-9])
def test_numbers_stay_numbers(value: Any) -> None:
    assert cell(value) is value


def test_csv_can_be_read_back() -> None:
    read = list(csv.DictReader(io.StringIO(to_csv(rows(three_seeds(), [timing(["s0.1-0"], 2.0)])))))
    sparse = next(row for row in read if row["arm"] == "sparse")
    assert float(sparse["delta_twin"]) == pytest.approx(-0.03)
    assert float(sparse["delta_twin_ci_low"]) == pytest.approx(-0.0548414, abs=1e-6)
    assert sparse["n_ok"] == "3"


def test_break_even_is_linear_in_logs() -> None:
    # 2x at 0.01 and 0.5x at 0.04: log-symmetric, so the crossing is the geometric mean 0.02
    density, between, reason = crossing({0.01: 2.0, 0.04: 0.5})
    assert density == pytest.approx(0.02)
    assert (between, reason) == ((0.01, 0.04), "")


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ({0.01: 2.0, 0.1: 1.5}, "faster at densities 0.01 to 0.1 (at least 1.50×)"),
        ({0.1: 0.5}, "slower at density 0.1 (at most 0.50×)"),
        ({0.01: 2.0, 0.02: 0.5, 0.05: 2.0}, "cross 1 more than once"),
        ({0.01: 0.5, 0.1: 2.0}, "no break-even explains"),
    ],
)
def test_no_break_even_is_made_up(points: dict[float, float], said: str) -> None:
    density, between, reason = crossing(points)
    assert density is between is None
    assert said in reason


def test_break_even_sentences() -> None:
    trials = [*three_seeds(0.04), *three_seeds(0.01)[3:]]
    bracketed = rows(trials, [timing(["s0.04-0"], 0.5), timing(["s0.01-0"], 2.0)])
    assert sentences(bracketed) == ["break-even of csr on mlp: faster than dense below density 0.02 (interpolated between 0.01 and 0.04)"]
    assert "not bracketed; slower at density 0.04" in sentences(rows(trials, [timing(["s0.04-0"], 0.5)]))[0]
    assert "no speed-up was measured" in sentences(rows(trials))[0]


def test_break_even_leaves_out_what_is_not_trusted() -> None:
    trials = [*three_seeds(0.04), *three_seeds(0.01)[3:]]
    assert "not bracketed; slower" in sentences(rows(trials, [timing(["s0.04-0"], 0.5), doubted(["s0.01-0"], 2.0)]))[0]
    assert "that may be trusted" in sentences(rows(trials, [doubted(["s0.04-0"], 0.5), doubted(["s0.01-0"], 2.0)]))[0]


def test_break_even_never_mixes_conditions() -> None:
    trials = [*three_seeds(0.04), *three_seeds(0.01)[3:]]
    table = rows(trials, [timing(["s0.04-0"], 0.5), timing(["s0.01-0"], 2.0, batch_size=1)])
    assert all("not bracketed" in line for line in sentences(table))


def test_what_three_seeds_claim() -> None:
    line = claim(rows(three_seeds()))
    assert line.startswith("3 seeds, and a claim needs 5: a paired 95 % interval is ±2.5 standard deviations wide, here typically ±0.025")
    assert "\n" not in line
    assert "nothing" in claim(rows(three_seeds(sparse=(0.9,), dense=(0.9,))))
    assert "no row is paired" in claim(rows(three_seeds()[:3]))
