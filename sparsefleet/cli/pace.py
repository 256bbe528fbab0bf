"""How long a sweep still takes, and which of its rows are complete: kept up with every trial that ends."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sparsefleet.cli.labels import trial_label
from sparsefleet.durations import Durations, kind_of
from sparsefleet.ledger.rows import TERMINAL

if TYPE_CHECKING:
    from sparsefleet.durations import Kind
    from sparsefleet.ledger.rows import TrialRow

_BATCH_SIZES: Mapping[str, int] = {"screen": 1, "publish": 4}
_UNTRUSTED = ("NOT_TRUSTWORTHY", "INFRA_FAILED")


class Row:
    """The trials that differ in their seed only.

    Attributes:
        label: what they are, without a seed.
        left: keys of those that have not ended.
    """

    def __init__(self, label: str, kind: Kind, arm: str, layer: str) -> None:
        self.label, self.kind, self.arm, self.layer = label, kind, arm, layer
        self.keys: list[str] = []
        self.left: set[str] = set()


class TrialPace:
    """Seconds until the trials have ended: what each that is open takes, by those of its kind that have finished, over how many run at once.

    How many that is comes from this driver's own time: the work of the trials that it has ended over the time since it began. So the estimate
    holds what it costs to start trials and the rest of the machine's load, and follows a change of either.
    """

    def __init__(self, trials: Iterable[TrialRow]) -> None:
        self._row_of: dict[str, Row] = {}
        self._seed_of: dict[str, Any] = {}
        self._names: dict[str, str] = {}
        self._durations = Durations()
        self._begun = time.monotonic()
        self._done_s = 0.0
        self._shares: dict[str, float] = {}
        rows: dict[str, Row] = {}
        for trial in trials:
            kind = kind_of(trial.spec, trial.arm)
            row = rows.get(kind[0])
            if row is None:
                label = trial_label(trial.spec).rpartition(" seed ")[0]
                row = rows[kind[0]] = Row(label, kind, trial.arm, trial.spec["layer"]["name"])
            row.keys.append(trial.key)
            self._row_of[trial.key], self._seed_of[trial.key], self._names[trial.key] = row, trial.spec.get("seed", 0), trial.spec_id
            if trial.state not in TERMINAL:
                row.left.add(trial.key)
        self.rows = list(rows.values())

    def known(self, seconds: Iterable[tuple[str, float]]) -> None:
        """Trials that had finished before, with the seconds they took."""
        for key, took in seconds:
            if key in self._row_of:
                self._durations.add(self._row_of[key].kind, took)

    def label(self, key: str) -> str:
        """What the trial is, with its seed."""
        return f"{self._row_of[key].label} seed {self._seed_of[key]}" if key in self._row_of else key[:12]

    def name(self, key: str) -> str:
        """Its spec_id."""
        return self._names.get(key, key[:12])

    def stepped(self, key: str, share: float) -> None:
        """A running trial has done this share of its steps."""
        self._shares[key] = share

    def ended(self, key: str, state: str, seconds: float | None) -> Row | None:
        """A trial ended; its row, if that was the last one of it."""
        self._shares.pop(key, None)
        row = self._row_of.get(key)
        if row is None or key not in row.left:
            return None
        row.left.discard(key)
        if seconds and state in ("SUCCEEDED", "DIVERGED"):
            self._durations.add(row.kind, seconds)
        self._done_s += seconds or 0.0
        return None if row.left else row

    def lost(self, key: str) -> None:
        """A running trial goes back to the queue."""
        self._shares.pop(key, None)

    def left_s(self, at_once: int = 0) -> float | None:
        """Seconds until the last trial ends; None while nothing tells how long one takes.

        Args:
            at_once: trials that run now; used until one has ended.
        """
        work = 0.0
        for row in self.rows:
            each = self._durations.of(row.kind) if row.left else 0.0
            if each is None:
                return None
            work += each * len(row.left)
        for key, share in self._shares.items():
            work -= share * ((self._durations.of(self._row_of[key].kind) if key in self._row_of else None) or 0.0)
        elapsed = time.monotonic() - self._begun
        parallel = self._done_s / elapsed if self._done_s > 0 and elapsed > 0 else float(at_once)
        return max(work, 0.0) / parallel if parallel > 0 else None

    def n_measures(self, asked: Mapping[str, Any]) -> int:
        """How many configurations are timed after the trials, at most; ``asked`` is the grid's ``measure:`` block."""
        level = asked.get("level", "none")
        if level == "none":
            return 0
        each = len(asked.get("ops") or ("forward", "step")) * (len(asked.get("batch_sizes") or ()) or _BATCH_SIZES[level])
        return each * sum(row.arm in ("sparse", "random-static") and row.layer != "masked" for row in self.rows)


class MeasurePace:
    """Seconds until the measurements have ended, with those that are taken once more because they were not trustworthy."""

    def __init__(self, each_s: float | None) -> None:
        self._before_s = each_s
        self._begun: float | None = None
        self._n_ended = 0
        self._doubtful = 0
        self.announced = 0

    def take(self, data: Mapping[str, Any]) -> tuple[str, float | None, str]:
        """One event of measuring: the phase in words, the seconds left, and a line to tell once (mostly empty)."""
        if self._begun is None:
            self._begun = time.monotonic()
        again, done, total = bool(data.get("again")), int(data.get("done", 0)), int(data.get("total", 0))
        if data.get("state") != "RUNNING":
            self._n_ended += 1
            self._doubtful += not again and (data.get("verdict") in _UNTRUSTED or data.get("state") in _UNTRUSTED)
        left = total - done + (0 if again else self._doubtful)
        each = (time.monotonic() - self._begun) / self._n_ended if self._n_ended else self._before_s
        then = f", then {self._doubtful} again" if self._doubtful and not again else ""
        word = "measuring again" if again else "measuring"
        line = ""
        if self.announced < 1 + again:
            self.announced = 1 + again
            what = f"{total} configuration{'s' if total != 1 else ''}"
            line = f"measuring {what} once more: not trustworthy the first time" if again else f"measuring {what}, one at a time"
        return f"{word} {done}/{total}{then}", None if each is None else each * left, line
