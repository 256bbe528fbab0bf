"""The page "What our numbers mean" explains every word that can stand beside a figure."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from sparsefleet.measure import contention
from sparsefleet.measure.limits import Bound
from sparsefleet.measure.verdict import LEVELS, REASONS
from sparsefleet.report import accuracy
from sparsefleet.report.speed_notes import PAGE
from sparsefleet.trial.record import Verdict

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / PAGE).read_text(encoding="utf-8")


@pytest.mark.parametrize("word", get_args(Verdict))
def test_every_verdict_is_explained(word: str) -> None:
    assert f"| `{word}` |" in TEXT


@pytest.mark.parametrize("code", REASONS)
def test_every_reason_is_explained(code: str) -> None:
    shown = re.sub(r"\{[^}]*\}", "…", REASONS[code])
    (line,) = (line for line in TEXT.splitlines() if line.startswith(f"| `{shown}` |"))
    _, _, meaning, advice, _ = line.split("|")
    assert len(meaning.strip()) > 20
    assert len(advice.strip()) > 10


@pytest.mark.parametrize("word", [accuracy.HELD, accuracy.LOST, accuracy.UNCLEAR, accuracy.NO_CLAIM])
def test_every_accuracy_verdict_is_explained(word: str) -> None:
    assert f"| `{word}` |" in TEXT


def test_every_reason_for_a_dropped_round_is_explained() -> None:
    source = Path(contention.__file__).read_text(encoding="utf-8")
    words = set(re.findall(r'"((?:[a-z]+_)+[a-z]+|steal)"', source))
    assert words >= {"cpu_contention", "steal", "foreign_cpu", "gpu_clock", "no_time"}
    assert not [word for word in words if f"`{word}`" not in TEXT]


@pytest.mark.parametrize("bound", get_args(Bound))
def test_every_bound_is_explained(bound: str) -> None:
    assert f"`{bound}`" in TEXT


def test_the_gates_are_those_of_the_code() -> None:
    publish, screen = LEVELS["publish"], LEVELS["screen"]
    assert f"fewer than {publish.kept} [{screen.kept}]" in TEXT
    assert f"less than {100 * publish.kept_share:.0f} % [{100 * screen.kept_share:.0f} %]" in TEXT
    for name in ("half_width", "control", "drift"):
        ours, theirs = (f"{100 * getattr(gates, name):g} %" for gates in (publish, screen))
        assert re.search(rf"{re.escape(ours)} \[±?{re.escape(theirs)}\]", TEXT), name
    assert publish.between is not None
    assert f"disagree by more than {100 * publish.between:g} %" in TEXT


def test_masks_are_told_on_page_one() -> None:
    head = "\n".join(TEXT.splitlines()[:12])
    assert "A mask alone changes neither speed nor memory" in head
    assert "issues/36214" in head


def test_the_page_is_found_from_the_readme() -> None:
    assert "(docs/numbers.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
