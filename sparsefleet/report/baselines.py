"""The columns that compare a row with its two dense baselines: the twin of the same width, and small-dense of the same size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sparsefleet.report.accuracy import INFEASIBLE, PARAMS_WITHIN, Claim, budget_of, claim_of, margin_of, too_good
from sparsefleet.report.intervals import iqm, mean

if TYPE_CHECKING:
    from sparsefleet.ledger.rows import TrialRow
    from sparsefleet.report.groups import Group, Values
    from sparsefleet.report.selection import Settled


def admitted(trial: TrialRow) -> TrialRow:
    """The trial, refused (INVALID, without a value) if its test set was evaluated more than once: then it is a figure chosen on the test set."""
    accuracy = (trial.record or {}).get("accuracy") or {}
    n = accuracy.get("test_evals", 1)
    if trial.state != "SUCCEEDED" or n == 1:
        return trial
    return replace(trial, state="INVALID", reason=f"the test set was evaluated {n} times, which is allowed once")


class Baselines:
    """What can be said of a row against its partners.

    Args:
        values: the metric by which pairs differ: test accuracy.
        margin: what a sparse network may lose; None for the default.
    """

    def __init__(self, groups: Sequence[Group], settled: Settled, values: Values, margin: float | None) -> None:
        self._row_of = {t.key: g for g in groups for t in g.trials}
        self._by_key = {t.key: t for t in settled.trials}
        self._settled, self._values, self._margin = settled, values, margin

    def columns(self, one: Group) -> dict[str, Any]:
        """The columns of a row; ``unequal_budget`` is {what: [ours, the partner's]}."""
        twin, rival = self._partner(one, "twin_key"), self._partner(one, "rival_key")
        metric = _metric(one)
        against_twin, against_rival = self._claim(one, twin, "twin_key", metric), self._claim(one, rival, "rival_key", metric)
        tuning = self._tuning(one)
        scores = [v for v in map(self._values.of, one.trials) if v is not None]
        dense = [v for v in map(self._values.of, twin.trials) if v is not None] if twin else []
        n_test = next((r["accuracy"].get("n_test") for r in one.records if r.get("accuracy")), None)
        return {
            "tuning": tuning,
            "twin_tuned": bool(twin and self._tuning(twin)),
            "rival_tuned": bool(rival and self._tuning(rival)),
            "accuracy_iqm": iqm(scores),
            "delta_twin_iqm": against_twin.iqm,
            "p_not_worse": against_twin.p_not_worse,
            "acc_verdict": against_twin.verdict,
            "acc_reason": against_twin.reason,
            "acc_margin": margin_of(metric, self._margin),
            "n_paired_rival": against_rival.n,
            "delta_rival_iqm": against_rival.iqm,
            "p_not_worse_rival": against_rival.p_not_worse,
            "acc_verdict_rival": against_rival.verdict,
            "acc_reason_rival": against_rival.reason,
            "rival_params": _params(rival) if rival else None,
            "unequal_budget": self._unequal(one, twin),
            "unequal_budget_rival": self._unequal(one, rival),
            "repeated_seeds": _repeated(one),
            "too_good": too_good(against_twin.mean, dense, metric=metric, n_test=n_test),
        }

    def tuned_alike(self, one: Group) -> set[str]:
        """Places at which a row and its twin were both tuned: a difference there is what tuning found, and no unfairness."""
        twin = self._partner(one, "twin_key")
        ours, theirs = self._tuning(one), self._tuning(twin) if twin else None
        return set(ours["paths"]) & set(theirs["paths"]) if ours and theirs else set()

    def _partner(self, one: Group, role: str) -> Group | None:
        found = [self._row_of.get(getattr(t, role) or "") for t in one.trials]
        return next((g for g in found if g is not None and g is not one), None)

    def _tuning(self, one: Group) -> dict[str, Any] | None:
        return next((self._settled.tuning[t.key] for t in one.trials if t.key in self._settled.tuning), None)

    def _claim(self, one: Group, partner: Group | None, role: str, metric: str) -> Claim:
        if partner is None:
            reason = _absent(one, role)
            return Claim(0, None, None, None, None, "NO_CLAIM" if reason else None, reason)
        pairs = [(self._values.of(t), self._values.of(self._by_key.get(getattr(t, role) or ""))) for t in one.trials]
        gaps = [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]
        refused = self._refused(one, partner) or (_not_as_small(one, partner) if role == "rival_key" else "")
        return claim_of(gaps, metric=metric, margin=self._margin, refused=refused)

    def _refused(self, one: Group, partner: Group) -> str:
        """Why nothing may be claimed of these two, whatever the figures say; empty if something may."""
        for group, whose in ((one, ""), (partner, "the other side: ")):
            tuning = self._tuning(group)
            if tuning and tuning["open"]:
                return f"{whose}its selection is open: {tuning['open']} of {tuning['trials']} trials have not run"
            twice = _repeated(group)
            if twice:
                return f"{whose}seed {twice[0]} stands twice"
            without = sum(self._values.of(t) is None for t in group.trials)
            if without:
                return f"{whose}{without} of {len(group.trials)} trials have no figure"
        return ""

    def _unequal(self, one: Group, partner: Group | None) -> dict[str, list[float]]:
        if partner is None:
            return {}
        return budget_of(one, self._tuning(one), self._start_epochs(one)).against(
            budget_of(partner, self._tuning(partner), self._start_epochs(partner))
        )

    def _start_epochs(self, one: Group) -> float:
        """Epochs of the networks that the row's trials started from, and of those that these started from: a ticket has all levels before it."""
        found = [self._epochs_before(t) for t in one.trials if t.depends_on in self._settled.epochs]
        return float(mean(found) or 0.0)

    def _epochs_before(self, trial: TrialRow) -> float:
        total, start = 0.0, trial.depends_on
        while start in self._settled.epochs:
            total += self._settled.epochs[start]
            start = self._by_key[start].depends_on if start in self._by_key else None
        return total


def _metric(one: Group) -> str:
    return str(next((r["accuracy"]["metric"] for r in one.records if r.get("accuracy")), "top1"))


def _absent(one: Group, role: str) -> str:
    """Why there is no partner where there should be one; empty where there should be none."""
    request: Mapping[str, Any] = one.trials[0].request
    if role == "twin_key" and request.get("dense_infeasible"):
        return f"{INFEASIBLE}: {request['dense_infeasible']}"
    return f"no small-dense: {request['no_rival']}" if role == "rival_key" and request.get("no_rival") else ""


def _repeated(one: Group) -> list[int]:
    """Seeds that stand in the row more than once: a value counted twice would narrow every interval."""
    seeds = [int(t.spec.get("seed", 0)) for t in one.trials]
    return sorted({seed for seed in seeds if seeds.count(seed) > 1})


def _params(one: Group) -> int | None:
    found = mean([float(r["counts"]["params"]) for r in one.records if r.get("counts")])
    return None if found is None else round(found)


def _not_as_small(one: Group, rival: Group) -> str:
    ours, theirs = _params(one), _params(rival)
    if ours is None or theirs is None or abs(theirs / ours - 1) <= PARAMS_WITHIN:
        return ""
    return f"small-dense has {theirs:,} parameters and this {ours:,}, which is not within {PARAMS_WITHIN:.0%}: widths are whole numbers"
