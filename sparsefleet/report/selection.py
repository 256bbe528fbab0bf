"""Which candidate of each selection counts: a pure function of the records, so that the ledger and MLflow give the same table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sparsefleet.ledger.rows import FAILED
from sparsefleet.report.groups import Values, leaf
from sparsefleet.report.intervals import mean

if TYPE_CHECKING:
    from sparsefleet.ledger.rows import TrialRow

SCORE = "last_on_val"
"""The last figure on the validation share; the test set chooses nothing."""
_LESS_IS_BETTER = ("mse",)


@dataclass(frozen=True)
class Settled:
    """Trials whose selections are settled.

    Attributes:
        trials: those that count, named candidates of no selection or winners of one; their partners are winners too.
        tuning: by trial key, what the winner's selection was.
        epochs: by trial key, of every trial of the sweep.
    """

    trials: list[TrialRow]
    tuning: dict[str, dict[str, Any]]
    epochs: dict[str, int]


def settle(trials: Sequence[TrialRow]) -> Settled:
    """Chooses a candidate in every selection of the sweep.

    The best mean of the last validation figure over the seeds wins (a diverged seed counts as chance; of equals the first as written); a candidate
    with failed trials comes after those without, one without any figure last.
    """
    selections: dict[str, dict[int, list[TrialRow]]] = {}
    paths: dict[str, list[str]] = {}
    for trial in trials:
        for part in parts(trial):
            selections.setdefault(part["id"], {}).setdefault(part["candidate"], []).append(trial)
            paths[part["id"]] = part["paths"]
    epochs = {t.key: _epochs(t) for t in trials}
    if not selections:
        return Settled(list(trials), {}, epochs)
    values = Values(trials, SCORE)
    tuning: dict[str, dict[str, Any]] = {}
    winners: dict[str, dict[int, str]] = {}
    for name, candidates in sorted(
        selections.items(), key=lambda item: len(item[1])
    ):  # of several selections the largest tells of a winner
        found, won = _judged(candidates, paths[name], values)
        winners[name] = {t.spec.get("seed", 0): t.key for t in won}
        tuning.update({t.key: found for t in won})
    of_key = {t.key: t for t in trials}

    def partner(trial: TrialRow, role: str) -> str | None:
        key: str | None = getattr(trial, f"{role}_key")
        name = trial.request.get("tuning", {}).get(role)
        if name is None and key in of_key:  # its own partner is a candidate of another row's: the tuned one is the harder to beat
            name = next((part["id"] for part in parts(of_key[key])), None)
        return winners[name].get(trial.spec.get("seed", 0)) if name in winners else key

    kept = [t for t in trials if not parts(t) or t.key in tuning or t.request["tuning"]["alone"]]
    shown = [replace(t, twin_key=partner(t, "twin"), rival_key=partner(t, "rival")) for t in kept]
    return Settled(shown, tuning, epochs)


def parts(trial: TrialRow) -> list[dict[str, Any]]:
    """The trial's parts in selections."""
    found: list[dict[str, Any]] = trial.request.get("tuning", {}).get("parts", [])
    return found


def _judged(candidates: dict[int, list[TrialRow]], paths: list[str], values: Values) -> tuple[dict[str, Any], list[TrialRow]]:
    """What the selection was, and the winner's trials."""
    order = sorted(candidates)
    every = [t for number in order for t in candidates[number]]
    sign = -1.0 if any(_metric(t) in _LESS_IS_BETTER for t in every) else 1.0
    scores = [mean([v for v in map(values.of, candidates[number]) if v is not None]) for number in order]
    failed = [sum(t.state in FAILED for t in candidates[number]) for number in order]
    ranks = [(score is None, n, -sign * (score or 0.0)) for score, n in zip(scores, failed, strict=True)]
    best = ranks.index(min(ranks))
    tried = [{path: leaf(candidates[number][0].spec, path) for path in paths} for number in order]
    won = candidates[order[best]]
    return {
        "paths": paths,
        "candidates": len(order),
        "selected": tried[best],
        "tried": tried,
        "scores": scores,
        "failed": failed,
        "open": sum(t.state not in ("SUCCEEDED", "DIVERGED", *FAILED) for t in every),
        "trials": len(every),
        "epochs": sum(_epochs(t) for t in every),
    }, won


def _metric(trial: TrialRow) -> str:
    return str(((trial.record or {}).get("accuracy") or {}).get("metric", ""))


def _epochs(trial: TrialRow) -> int:
    """What was trained, or is to be trained."""
    accuracy = (trial.record or {}).get("accuracy") or {}
    return int(accuracy.get("epochs", trial.spec["train"]["epochs"]))
