"""The planted faults of ``benchmarks.trust.rules``: real grids, trials and ledgers."""

from __future__ import annotations

from pathlib import Path

from benchmarks.figures import Run
from benchmarks.trust.rules import GRID, Sweep, figures, flags, peeking


def test_three_of_three_faults_are_refused_or_flagged_and_a_clean_sweep_is_not() -> None:
    faults, clean = figures(Run(quick=True))
    assert (faults.value, faults.kept) == (3.0, True)
    assert (clean.value, clean.kept) == (0.0, True)


def test_a_figure_that_was_looked_at_twice_is_in_no_mean(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, GRID.replace("SEEDS", "2")).run("dense")
    with peeking():
        sweep.run()
    row = sweep.sparse()
    assert (row["accuracy"], row["n_failed"], row["acc_verdict"]) == (None, 2, "NO_CLAIM")
    assert flags(row) == ["refused: INVALID: the test set was evaluated 2 times, which is allowed once"]
