"""Curves, facts and warnings of a running trial; part of its checkpoint."""

from __future__ import annotations

from typing import Any

from sparsefleet.redact import redacted
from sparsefleet.trial.record import Curve, Fact


class Log:
    """What a trial has to tell besides its result."""

    def __init__(self) -> None:
        self.curves: dict[str, Curve] = {}
        self.facts: list[Fact] = []
        self.warnings: list[str] = []
        self.every = 1
        self._loss_sum, self._loss_n = 0.0, 0
        self._sums: dict[str, float] = {}

    def add(self, name: str, step: int, value: float, thin: bool = False) -> None:
        """One point of a curve.

        Args:
            thin: take the place of the last point if that is fewer than ``every`` steps old, so that a method that acts at every step
                leaves a few hundred points.
        """
        curve = self.curves.setdefault(name, Curve(steps=[], values=[]))
        if thin and len(curve.steps) > 1 and curve.steps[-1] - curve.steps[-2] < self.every:
            curve.steps[-1], curve.values[-1] = step, value
            return
        curve.steps.append(step)
        curve.values.append(value)

    def is_due(self, name: str, step: int, spacing: int) -> bool:
        """Whether the curve's last point is at least ``spacing`` steps old, or there is none."""
        curve = self.curves.get(name)
        return curve is None or step - curve.steps[-1] >= spacing

    def last(self, name: str) -> float | None:
        """The curve's last value."""
        curve = self.curves.get(name)
        return curve.values[-1] if curve else None

    def add_sum(self, name: str, step: int, count: int) -> None:
        """Adds to a running total, which is a thinned curve."""
        self._sums[name] = self._sums.get(name, 0.0) + count
        self.add(name, step, self._sums[name], thin=True)

    def add_loss(self, step: int, value: float) -> None:
        """The training loss, as the mean over ``every`` steps."""
        self._loss_sum += value
        self._loss_n += 1
        if self._loss_n >= self.every:
            self.add("train_loss", step, self._loss_sum / self._loss_n)
            self._loss_sum, self._loss_n = 0.0, 0

    def note(self, step: int, what: str, **values: float) -> None:
        """Something that happened once."""
        self.facts.append(Fact(step=step, what=what, values=values))

    def warn(self, text: str) -> None:
        """Something that the reader of the record should know."""
        text = redacted(text)
        if text not in self.warnings:
            self.warnings.append(text)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "curves": {name: curve.model_dump() for name, curve in self.curves.items()},
            "facts": [fact.model_dump() for fact in self.facts],
            "warnings": self.warnings,
            "loss": [self._loss_sum, self._loss_n],
            "sums": self._sums,
        }

    def restore(self, stored: dict[str, Any]) -> None:
        """Takes up what a checkpoint holds; warnings of this attempt stay."""
        self.curves = {name: Curve(**curve) for name, curve in stored["curves"].items()}
        self.facts = [Fact(**fact) for fact in stored["facts"]]
        for text in stored["warnings"]:
            self.warn(text)
        self._loss_sum, self._loss_n = stored["loss"]
        self._sums = dict(stored["sums"])
