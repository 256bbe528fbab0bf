"""MT-11: a test set that is looked at twice, a seed that is used twice, and an unequal training budget are refused or flagged.

Real grids, real trials on the digits data, a real ledger; the table's rows say what came of each fault. The clean sweep beside them must stay clean.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, Run
from sparsefleet.errors import InvalidGrid
from sparsefleet.fleet.enqueue import sweep_trials
from sparsefleet.grid.load import load_text
from sparsefleet.ledger import SweepTrial, open_ledger
from sparsefleet.registry import catalog
from sparsefleet.report.compare import rows
from sparsefleet.trial import run as trial_run
from sparsefleet.trial.request import TrialRequest
from sparsefleet.trial.spec import TrialSpec
from sparsefleet.trial.training import Training

SWEEP = "rules-00000000"
GRID = """
name: rules
dataset: digits
model: {mlp: {hidden: [16]}}
optimizer: {sgd: {lr: 0.1}}
train: {epochs: 1}
seeds: SEEDS
density: 0.5
layer: csr
control_arms: []
method: {rewirer: static}
"""
Row = dict[str, Any]


class Peeking(Training):
    """The planted fault: looks at the test set, and then tests as if it had not."""

    def finish(self) -> None:
        """As ever, after the look."""
        self._test()
        self.test = None
        super().finish()


@contextmanager
def peeking() -> Iterator[None]:
    """Trials within look at the test set twice."""
    honest, trial_run.Training = trial_run.Training, Peeking  # type: ignore[misc]
    try:
        yield
    finally:
        trial_run.Training = honest  # type: ignore[misc]


class Sweep:
    """A sweep of a grid in a ledger of its own, its trials run here one after the other."""

    def __init__(self, home: Path, text: str, also: Callable[[list[SweepTrial]], list[SweepTrial]] = lambda _: []) -> None:
        self.home = home
        plugins = catalog()
        entered = list(sweep_trials(load_text(text, "rules.yaml", catalog=plugins), plugins, home))
        self.trials = entered + also(entered)
        with open_ledger(home) as ledger:
            ledger.create_sweep(SWEEP, "rules", "0" * 64, text, {}, self.trials)

    def run(self, arm: str = "") -> Sweep:
        """Runs the trials of one arm, or all that have not run."""
        with open_ledger(self.home) as ledger:
            for one in self.trials:
                attempt = ledger.lease(one.key, SWEEP, "here") if arm in ("", one.arm) else None
                if attempt is None:
                    continue
                body = {
                    "spec": TrialSpec.model_validate(one.spec),
                    "trial_key": one.key,
                    "attempt": attempt,
                    "workdir": self.home / one.key,
                    "data_root": self.home,
                }
                record = trial_run.run_trial(TrialRequest(**body))
                assert ledger.commit(one.key, attempt, record.to_json())
        return self

    def sparse(self) -> Row:
        """The row of the sparse method."""
        with open_ledger(self.home) as ledger:
            return next(row for row in rows(ledger.trials(SWEEP)) if row["arm"] == "random-static")


def flags(row: Row) -> list[str]:
    """What a row says against itself."""
    found = [f"refused: {text}" for text in row["failures"]]
    found += [f"seed {seed} stands twice" for seed in row["repeated_seeds"]]
    found += [f"{name}: {ours:g} against {theirs:g}" for name, (ours, theirs) in row["unequal_budget"].items()]
    return found


def figures(run: Run) -> list[Figure]:
    """The three faults, and the clean sweep."""
    grid = GRID.replace("SEEDS", str(run.pick(5, 2)))
    told: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)

        def home(name: str) -> Path:
            (root / name).mkdir()
            return root / name

        clean = Sweep(home("clean"), grid).run().sparse()
        told["clean"] = flags(clean)
        twice = Sweep(home("twice"), grid).run("dense")
        with peeking():
            twice.run()
        told["test set"] = [text for text in flags(twice.sparse()) if "test set was evaluated 2 times" in text]
        told["seed"] = [
            *refused(grid),
            *(text for text in flags(Sweep(home("seed"), grid, again).run().sparse()) if "stands twice" in text),
        ]
        longer = Sweep(home("longer"), grid + "dense: {train: {epochs: 2}}\n").run().sparse()
        tuned = (
            Sweep(home("tuned"), grid.replace("lr: 0.1", "lr: {select: [0.1, 0.2]}") + "dense: {optimizer.sgd.lr: 0.1}\n").run().sparse()
        )
        told["budget"] = [text for text in flags(longer) if "epochs: 1 against 2" in text]
        told["tuning"] = [text for text in flags(tuned) if "candidates: 2 against 1" in text]
    run.keep({**told, "clean verdict": [clean["acc_verdict"], clean["acc_reason"]]})
    caught = [bool(told["test set"]), len(told["seed"]) == 2, bool(told["budget"]) and bool(told["tuning"])]
    names = [name for name, found in zip(("test set twice", "seed twice", "unequal budget"), caught, strict=True) if not found]
    return [
        Figure(
            "faults refused or flagged: test set, seed, budget",
            "of 3",
            float(sum(caught)),
            target=3,
            note=f"missed: {names}" if names else "",
        ),
        Figure("flags on a clean sweep", "", float(len(told["clean"])), target=0, at_least=False),
    ]


def again(trials: list[SweepTrial]) -> list[SweepTrial]:
    """The first sparse trial once more, as a ledger would hold it that mixed two thread counts: another key, the same seed."""
    one = next(trial for trial in trials if trial.arm == "random-static")
    return [replace(one, key=one.key[::-1], ordinal=len(trials))]


def refused(grid: str) -> list[str]:
    """What the grid says to a seed that is listed twice."""
    try:
        load_text(grid.replace("seeds: ", "seeds: [0, 0] # "), "rules.yaml", catalog=catalog())
    except InvalidGrid as error:
        return [str(error)] if "repeats seed 0" in str(error) else []
    return []
