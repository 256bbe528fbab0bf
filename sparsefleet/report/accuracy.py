"""What the seeds of a row can claim about accuracy, against each of its two dense baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparsefleet.report.intervals import deviation, interval, iqm, mean, probability_above

if TYPE_CHECKING:
    from sparsefleet.report.groups import Group

MARGIN = 0.005
"""Half a point of accuracy: what a sparse network may lose and still be called not worse."""
MIN_PAIRS = 5
PARAMS_WITHIN = 0.01
"""How far small-dense may be from the sparse network's trainable parameters."""
INFEASIBLE = "dense infeasible"
HELD, LOST, UNCLEAR, NO_CLAIM = "ACC_HELD", "ACC_LOST", "ACC_UNCLEAR", "NO_CLAIM"
_ALARM = 3.0
_SEEDS_FOR_ALARM = 3


@dataclass(frozen=True)
class Claim:
    """A paired comparison.

    Attributes:
        ci: 95 % interval of the mean paired difference; None where the pairs give none.
        p_not_worse: how likely the difference is no worse than the margin.
        verdict: ACC_HELD, ACC_LOST, ACC_UNCLEAR, or NO_CLAIM for ``reason``; None where there is no partner to compare with.
    """

    n: int
    mean: float | None
    iqm: float | None
    ci: tuple[float, float] | None
    p_not_worse: float | None
    verdict: str | None
    reason: str = ""


def claim_of(gaps: Sequence[float], *, metric: str, margin: float | None, refused: str = "") -> Claim:
    """What the paired differences (ours minus the partner's) can claim.

    ACC_HELD if the interval lies above ``-margin``, ACC_LOST if it lies below; for a mean squared error, which is better low, the differences change
    their sign. It has no margin of its own: what half a point is to an error depends on its unit.

    Args:
        margin: None for the default.
        refused: why no claim may be made whatever the differences say.
    """
    better = [-gap for gap in gaps] if metric == "mse" else list(gaps)
    limit = margin_of(metric, margin)
    ci = interval(gaps)
    bounds = interval(better)
    p = probability_above(better, -limit) if limit is not None else None
    reason = refused or _unsupported(len(gaps), bounds, limit)
    if reason or bounds is None or limit is None:
        return Claim(len(gaps), mean(gaps), iqm(gaps), ci, p, NO_CLAIM, reason)
    verdict = HELD if bounds[0] > -limit else LOST if bounds[1] < -limit else UNCLEAR
    return Claim(len(gaps), mean(gaps), iqm(gaps), ci, p, verdict)


def margin_of(metric: str, asked: float | None) -> float | None:
    """The margin that a verdict uses: what was asked for, else half a point of accuracy; none for a mean squared error."""
    return asked if asked is not None else (None if metric == "mse" else MARGIN)


def _unsupported(n: int, bounds: tuple[float, float] | None, limit: float | None) -> str:
    if n < MIN_PAIRS:
        return f"{n} paired seed{'s' if n != 1 else ''}; a claim needs {MIN_PAIRS}"
    if bounds is None:
        return f"all {n} differences are equal, which tells nothing about their spread"
    return "a mean squared error has no default margin: compare --margin gives one in its unit" if limit is None else ""


def too_good(delta: float | None, partner: Sequence[float], *, metric: str, n_test: int | None) -> bool:
    """Whether a row beats dense by more than three standard deviations of dense over its seeds: to be looked at by hand before it is believed.

    Args:
        partner: the dense values by seed; fewer than three tell no spread. One test example is the least spread there is.
    """
    spread = deviation(partner)
    if delta is None or spread is None or len(partner) < _SEEDS_FOR_ALARM:
        return False
    least = 1.0 / n_test if n_test and metric != "mse" else 0.0
    gain = -delta if metric == "mse" else delta
    return gain > _ALARM * max(spread, least) > 0


@dataclass(frozen=True)
class Budget:
    """What went into one row, by seed: what a comparison must hold equal."""

    candidates: int
    epochs: float
    steps: float | None
    samples: float | None
    tuning_epochs: float

    def against(self, other: Budget) -> dict[str, list[float]]:
        """What is not equal: {what: [ours, the other's]}; figures that one side does not have are not compared."""
        pairs = {
            "candidates": (self.candidates, other.candidates),
            "epochs": (self.epochs, other.epochs),
            "steps": (self.steps, other.steps),
            "samples": (self.samples, other.samples),
            "tuning_epochs": (self.tuning_epochs, other.tuning_epochs),
        }
        return {name: [a, b] for name, (a, b) in pairs.items() if a is not None and b is not None and a != b}


def budget_of(one: Group, tuning: Mapping[str, Any] | None, start_epochs: float = 0) -> Budget:
    """The training that a row's seeds had, on average, and the tuning before.

    Args:
        start_epochs: what the networks that it started from had been trained.
    """
    trained = [r["accuracy"] for r in one.records if r.get("accuracy") and "steps" in r["accuracy"]]
    steps = mean([float(a["steps"]) for a in trained])
    epochs = mean([float(a["epochs"]) for a in trained])
    own = float(one.spec["train"]["epochs"]) if epochs is None else epochs
    seeds = max(1, len({t.spec.get("seed", 0) for t in one.trials}))
    return Budget(
        candidates=tuning["candidates"] if tuning else 1,
        epochs=own + start_epochs,
        steps=steps if not start_epochs else None,
        samples=steps * one.spec["train"]["batch_size"] if steps is not None and not start_epochs else None,
        tuning_epochs=(tuning["epochs"] / seeds if tuning else own) + start_epochs,
    )
