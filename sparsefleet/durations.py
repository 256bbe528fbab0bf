"""How long trials take, by what finished ones took: the mean of the most similar group of which any have finished."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

Kind = tuple[str, ...]
"""The names of a trial's groups, from its own row to all trials."""


def kind_of(spec: Mapping[str, Any], arm: str) -> Kind:
    """The groups of a trial: its row (other seeds), the same work on another method, the same arm and layer, everything."""
    layer = spec.get("layer", {}).get("name", "")
    train = spec.get("train", {})
    row = {name: value for name, value in spec.items() if name not in ("seed", "start")}
    work = [spec.get("dataset"), spec.get("model"), train.get("epochs"), train.get("max_steps"), train.get("batch_size")]
    return f"{arm} {_text(row)}", f"{arm} {layer} {_text(work)}", f"{arm} {layer}", ""


class Durations:
    """Seconds of finished trials by group."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, float, float]] = {}  # how many, their mean, the sum of squared distances from it
        self._work: set[str] = set()
        self.n = 0

    def add(self, kind: Kind, seconds: float) -> None:
        """A trial finished."""
        self.n += 1
        self._work.add(kind[1])
        for name in kind:
            n, mean, squares = self._found.get(name, (0, 0.0, 0.0))
            step = seconds - mean
            mean += step / (n + 1)
            self._found[name] = n + 1, mean, squares + step * (seconds - mean)

    def of(self, kind: Kind) -> float | None:
        """Seconds that such a trial takes; None before any has finished."""
        return next((self._found[name][1] for name in kind if name in self._found), None)

    def total(self, kinds: Iterable[Kind]) -> float | None:
        """Seconds that all of these take, one after the other."""
        if not self.n:
            return None
        return math.fsum(self.of(kind) or 0.0 for kind in kinds)

    @property
    def spread(self) -> float | None:
        """Standard deviation over mean of trials that do the same work; None below two finished ones."""
        alike = (found for name, found in self._found.items() if name in self._work)
        several = [found for found in alike if found[0] > 1] or [found for found in (self._found.get("", (0, 0.0, 0.0)),) if found[0] > 1]
        weights = sum(n for n, _, _ in several)
        if not weights:
            return None
        return sum(n * math.sqrt(squares / (n - 1)) / mean for n, mean, squares in several if mean > 0) / weights


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
