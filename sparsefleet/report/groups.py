"""Trials that differ in nothing but their seed, and what can be read from one of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sparsefleet.ledger.rows import TERMINAL

if TYPE_CHECKING:
    from sparsefleet.ledger.rows import TrialRow

_CHANCE_COUNTS = ("accuracy", "best_on_val", "last_on_val")
METRICS = ("accuracy", "test_loss", "best_on_val", "last_on_val", "wall_s")


@dataclass
class Group:
    """The trials of one row, by ascending seed."""

    arm: str
    spec: dict[str, Any]
    """The spec without its seed; ``start`` names the row that it starts from, not the trial."""
    trials: list[TrialRow] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The spec_id of the trial with the lowest seed: the row's name."""
        return self.trials[0].spec_id

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The records of the trials that succeeded."""
        return [t.record for t in self.trials if t.record and t.state == "SUCCEEDED"]

    def count(self, *states: str) -> int:
        """Trials in one of ``states``."""
        return sum(t.state in states for t in self.trials)

    @property
    def n_not_run(self) -> int:
        """Trials without an end: pending, running or cancelled."""
        return sum(t.state == "CANCELLED" or t.state not in TERMINAL for t in self.trials)


def without_seed(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial shares with the other seeds of its row."""
    start = spec.get("start")
    row = {k: v for k, v in start.items() if k != "trial"} if start else None
    return {**{k: v for k, v in spec.items() if k != "seed"}, "start": row}


def group(trials: Iterable[TrialRow]) -> list[Group]:
    """The rows' trials, in the order in which each row first appears; a trial that is listed twice counts once."""
    groups: dict[tuple[str, str], Group] = {}
    seen: set[tuple[str, str]] = set()
    known: dict[tuple[Any, ...], tuple[str, dict[str, Any]]] = {}
    for trial in trials:
        if (trial.arm, trial.key) in seen:
            continue
        seen.add((trial.arm, trial.key))
        parts = (*trial.spec, *(id(value) for name, value in trial.spec.items() if name != "seed"))  # seeds of a ledger share their objects
        if parts not in known:
            spec = without_seed(trial.spec)
            known[parts] = json.dumps(spec, sort_keys=True), spec
        text, spec = known[parts]
        slot = (trial.arm, text)
        if slot not in groups:
            groups[slot] = Group(trial.arm, spec)
        groups[slot].trials.append(trial)
    for one in groups.values():
        one.trials.sort(key=lambda t: (t.spec.get("seed", 0), t.ordinal))
    return list(groups.values())


class Values:
    """The value of one metric for each trial; a diverged trial counts as chance accuracy, on the test set and on the validation share.

    Args:
        trials: every trial of the table: chance is a fact of the data set, so any record of it tells.
        metric: one of ``METRICS``.
    """

    def __init__(self, trials: Iterable[TrialRow], metric: str = "accuracy") -> None:
        self.metric = metric
        self._chance: dict[str, float] = {}
        seen: dict[int, Any] = {}  # trials of a ledger share the object
        for trial in trials:
            accuracy, dataset = (trial.record or {}).get("accuracy"), trial.spec["dataset"]
            if accuracy and id(dataset) not in seen:
                seen[id(dataset)] = dataset
                self._chance.setdefault(_dataset(trial), accuracy["chance"])

    def of(self, trial: TrialRow | None) -> float | None:
        """The trial's value, or None where it has none: failed, not run, or diverged where no chance value is known."""
        if trial is None:
            return None
        if trial.state == "DIVERGED":
            return self._chance.get(_dataset(trial)) if self.metric in _CHANCE_COUNTS else None
        if trial.state != "SUCCEEDED" or not trial.record:
            return None
        if self.metric == "wall_s":
            return float(trial.record["wall_s"])
        accuracy = trial.record.get("accuracy") or {}
        value = accuracy.get("test" if self.metric == "accuracy" else self.metric)
        return None if value is None else float(value)


def _dataset(trial: TrialRow) -> str:
    return json.dumps(trial.spec["dataset"], sort_keys=True)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a nested spec with its dotted path; lists stay whole."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def leaf(spec: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, or None."""
    value: Any = spec
    for part in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted paths at which two specs differ, with both values."""
    if one == other:
        return {}
    ours, theirs = dict(leaves(one)), dict(leaves(other))
    paths = [*ours, *(p for p in theirs if p not in ours)]
    return {p: (ours.get(p), theirs.get(p)) for p in paths if ours.get(p) != theirs.get(p)}
