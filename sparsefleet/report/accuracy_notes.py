"""The lines under a table that are about accuracy: intervals, tuning, budgets, and what must be looked at by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sparsefleet.report.accuracy import INFEASIBLE, MARGIN, MIN_PAIRS, NO_CLAIM
from sparsefleet.report.intervals import BOOTSTRAP_FROM

Row = Mapping[str, Any]
UNTUNED = "dense was not tuned: its learning rate is the grid's own; select: [...] tunes it"
_MOST = 4
_UNITS = {"epochs": "epochs", "steps": "steps", "samples": "training samples", "tuning_epochs": "epochs with tuning"}


def accuracy_notes(rows: Sequence[Row]) -> list[str]:
    """One line each; nothing for what there is nothing to say about."""
    return [*_intervals(rows), *_infeasible(rows), *_verdicts(rows), *_tuning(rows), *_budgets(rows), *_rivals(rows), *_by_hand(rows)]


def row_name(row: Row) -> str:
    """``rigl at density 0.1``."""
    return f"{row['method']} at density {row['density_asked']:g}"


def _intervals(rows: Sequence[Row]) -> list[str]:
    if all(row["accuracy_ci"] is None for row in rows):
        return []
    rule = f"Student's t below {BOOTSTRAP_FROM} seeds, studentised bootstrap from there on"
    return [
        f"accuracy: last checkpoint, test set evaluated once; 95 % intervals over seeds ({rule}); differences to the twin are paired by seed"
    ]


def _infeasible(rows: Sequence[Row]) -> list[str]:
    """What the twin would need, for rows that have none because it does not fit."""
    told: dict[str, list[str]] = {}
    for row in rows:
        if str(row["acc_reason"]).startswith(INFEASIBLE):
            told.setdefault(row["acc_reason"], []).append(row_name(row))
    return _few(f"{reason}: {', '.join(dict.fromkeys(names))}" for reason, names in told.items())


def _verdicts(rows: Sequence[Row]) -> list[str]:
    if not any(max(row["n_paired"], row["n_paired_rival"]) >= MIN_PAIRS for row in rows):
        return []
    margins = {row["acc_margin"] for row in rows if row["acc_margin"] is not None} or {MARGIN}
    limit = ", ".join(f"{margin:g}" for margin in sorted(margins))
    lines = [f"ACC_HELD: the whole interval of the difference lies above −{limit}; ACC_LOST: below it; ACC_UNCLEAR: on both sides"]
    reasons = [
        (row, row[field], against)
        for row in rows
        for verdict, field, against in (("acc_verdict", "acc_reason", "dense"), ("acc_verdict_rival", "acc_reason_rival", "small-dense"))
        if row[verdict] == NO_CLAIM and row[field] and "small-dense" not in row[field] and not row[field].startswith(INFEASIBLE)
    ]
    return lines + _few(f"no claim for {row_name(row)} against {against}: {reason}" for row, reason, against in reasons)


def _tuning(rows: Sequence[Row]) -> list[str]:
    lines = []
    tuned = [row["tuning"] for row in rows if row["tuning"]]
    if tuned:
        n, epochs = sum(t["trials"] for t in tuned), sum(t["epochs"] for t in tuned)
        lines.append(
            f"tuned: the candidate with the best mean on the validation share; {n} trials and {epochs} epochs went into all of them"
        )
        still_open = sum(t["open"] for t in tuned)
        if still_open:
            lines.append(f"tuned: {still_open} candidate trials have not run, so another candidate may win yet")
    if any(row["twin"] and not row["twin_tuned"] for row in rows):
        lines.append(UNTUNED)
    return lines


def _budgets(rows: Sequence[Row]) -> list[str]:
    told: dict[str, list[str]] = {}
    for row in rows:
        for field, whose in (("unequal_budget", "its twin"), ("unequal_budget_rival", "its small-dense")):
            said = budget_text(row[field], whose)
            if said:
                told.setdefault(said, []).append(row_name(row))
    return _few(f"unequal budget, {said}: {', '.join(dict.fromkeys(names))}" for said, names in told.items())


def budget_text(unequal: Mapping[str, Sequence[float]], whose: str) -> str:
    """``tuning: 3 candidates, its twin 1; 12 epochs, its twin 10``; empty for an equal budget."""
    parts = []
    if "candidates" in unequal:
        ours, theirs = unequal["candidates"]
        parts.append(f"tuning: {ours:g} candidate{'' if ours == 1 else 's'}, {whose} {theirs:g}")
    parts += [f"{unequal[name][0]:,.6g} {unit}, {whose} {unequal[name][1]:,.6g}" for name, unit in _UNITS.items() if name in unequal]
    return "; ".join(parts)


def _rivals(rows: Sequence[Row]) -> list[str]:
    sparse = [row for row in rows if row["density_asked"] < 1 and row["arm"] != "small-dense"]
    if not sparse:
        return []
    without = [row for row in sparse if not row["rival"]]
    reasons = dict.fromkeys(row["acc_reason_rival"] for row in without if row["acc_reason_rival"])
    lines = list(reasons)
    if without and not reasons:
        most = "no small-dense was trained" + ("" if len(without) == len(sparse) else f" for {len(without)} of {len(sparse)} sparse rows")
        lines.append(f"{most}: nothing here is compared with a dense network of the same size (control_arms: [small-dense])")
    off = [row for row in sparse if row["acc_reason_rival"].startswith("small-dense has")]
    return lines + _few(f"{row_name(row)}: {row['acc_reason_rival']}" for row in off)


def _by_hand(rows: Sequence[Row]) -> list[str]:
    lines = [f"check by hand: {row_name(row)} beats dense by more than 3 standard deviations of dense" for row in rows if row["too_good"]]
    lines += [
        f"{row_name(row)}: seed {seed} stands twice, so nothing is claimed of this row" for row in rows for seed in row["repeated_seeds"]
    ]
    return lines


def _few(lines: Iterable[str]) -> list[str]:
    every = list(dict.fromkeys(lines))
    more = len(every) - _MOST
    return [*every[:_MOST], *([f"and {more} more of this kind (compare --json)"] if more > 0 else [])]
