from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from report_rows import spec, three_seeds, timing, trial

from sparsefleet.report.breakeven import crossing, sentences
from sparsefleet.report.claims import claim
from sparsefleet.report.compare import rows
from sparsefleet.report.csv import cell, to_csv
from sparsefleet.report.layout import Column, markdown_lines, text_lines
from sparsefleet.report.plain import plain
from sparsefleet.report.table import render, render_markdown


def test_columns_line_up() -> None:
    assert text_lines([Column("a", ["xyz", "é"]), Column("n", ["1", "10"], right=True)]) == ["a     n", "xyz   1", "é    10"]


def test_the_table_reads_like_this() -> None:
    lines = render(
        rows([*three_seeds(0.1), *three_seeds(0.02, sparse=(0.88, 0.87, 0.89))[3:]], [timing(["s0.1-0"], 0.5), timing(["s0.02-0"], 2.0)])
    )
    assert lines[:4] == [
        "density  method  layer  acc (mean ± 95 % CI, n=3)  Δ dense [95 % CI]        params    MiB  step ms p50 [p10, p90]  vs dense [95 % CI]  trusted",
        "1        dense   dense  0.940 ± 0.025              –                        33,290   0.12  10.0 [9.00, 12.0]       1.00×               yes",
        "0.1      set     csr    0.910 ± 0.025              −0.030 [−0.055, −0.005]   3,799  0.012  20.0 [18.0, 24.0]       0.50× [0.49, 0.51]  yes",
        "0.02     set     csr    0.880 ± 0.025              −0.060 [−0.085, −0.035]   1,177  0.002  5.00 [4.50, 6.00]       2.00× [1.96, 2.04]  yes",
    ]
    assert any(line.startswith("timed: whole training step, batch 64, float32, cpu:test, 1 thread, against dense_eager") for line in lines)


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


def test_break_even_never_mixes_conditions() -> None:
    trials = [*three_seeds(0.04), *three_seeds(0.01)[3:]]
    table = rows(trials, [timing(["s0.04-0"], 0.5), timing(["s0.01-0"], 2.0, batch_size=1)])
    assert all("not bracketed" in line for line in sentences(table))


def test_what_three_seeds_claim() -> None:
    line = claim(rows(three_seeds()))
    assert line.startswith("3 seeds: a paired 95 % interval is ±2.5 standard deviations wide, here typically ±0.025")
    assert "\n" not in line
    assert "nothing" in claim(rows(three_seeds(sparse=(0.9,), dense=(0.9,))))
    assert "no row is paired" in claim(rows(three_seeds()[:3]))
