"""Which trials may run now. Knows dependencies, shapes and what other sweeps hold; knows nothing of Ray."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence

from sparsefleet.fleet.shape import Shape
from sparsefleet.ledger.rows import ACTIVE, FAILED, TERMINAL, TrialRow

__all__ = ["Shape", "TrialQueue"]

_ENOUGH_TO_START_FROM = ("SUCCEEDED",)


class TrialQueue:
    """The sweep's trials: ready, waiting for another trial, held elsewhere, or done."""

    def __init__(self, rows: Iterable[TrialRow]) -> None:
        self.rows: dict[str, TrialRow] = {}
        self.states: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self._ready: dict[Shape, deque[str]] = {}
        self._waiting: dict[str, list[str]] = {}
        self.alone: deque[str] = deque()
        self.elsewhere: dict[str, str] = {}  # and by which sweep
        for row in rows:
            self.rows[row.key] = row
            self.mark(row.key, row.state)
        for key, row in self.rows.items():
            if row.state in ACTIVE:
                self.elsewhere[key] = owner_of(row)
            elif row.state not in TERMINAL:
                self._place(key)

    def mark(self, key: str, state: str) -> None:
        """The trial's state, and with it the counts."""
        before = self.states.get(key)
        if before is not None:
            self.counts[before] -= 1
        self.states[key] = state
        self.counts[state] += 1

    def _place(self, key: str) -> None:
        row = self.rows[key]
        if row.depends_on is not None and self.waits(key):
            self._waiting.setdefault(row.depends_on, []).append(key)
        else:
            self._ready.setdefault(Shape.of(row.resources), deque()).append(key)

    def waits(self, key: str) -> bool:
        """True if the trial that it starts from has not ended."""
        needs = self.rows[key].depends_on
        return needs is not None and needs in self.states and self.states[needs] not in TERMINAL

    def shapes(self) -> list[Shape]:
        """Shapes that have a ready trial."""
        return [shape for shape, keys in self._ready.items() if keys]

    def n_ready(self, shape: Shape | None = None) -> int:
        """Trials that could start now."""
        return len(self._ready.get(shape, ())) if shape else sum(len(keys) for keys in self._ready.values())

    def take(self, shape: Shape) -> str | None:
        """The next ready trial of this shape."""
        keys = self._ready.get(shape)
        return keys.popleft() if keys else None

    def give_back(self, key: str, *, alone: bool = False, last: bool = False) -> None:
        """It did not run, or has to run again; ``alone``: with nothing beside it; ``last``: after the others.

        What was lost waits its turn: at the front, one trial alone would spend its whole budget in a storm of losses. One whose start was
        reopened meanwhile waits for that.
        """
        self.mark(key, "PENDING")
        if alone:
            self.alone.append(key)
        elif self.waits(key):
            self._place(key)
        else:
            ready = self._ready.setdefault(Shape.of(self.rows[key].resources), deque())
            (ready.append if last else ready.appendleft)(key)

    def reopen(self, key: str) -> None:
        """A trial that was done has to run again; what starts from it and is ready waits for it."""
        self.mark(key, "PENDING")
        for keys in self._ready.values():
            waiting = [other for other in keys if self.rows[other].depends_on == key]
            for other in waiting:
                keys.remove(other)
                self._place(other)
        self._place(key)

    def run_alone(self, key: str) -> None:
        """A ready trial runs with nothing beside it."""
        ready = self._ready[self.shape(key)]
        ready.remove(key)
        self.alone.append(key)

    def done(self, key: str, state: str) -> None:
        """It reached a terminal state: what waited for it is ready."""
        self.mark(key, state)
        self.elsewhere.pop(key, None)
        for waiting in self._waiting.pop(key, []):
            self._place(waiting)

    def broken_start(self, key: str) -> str | None:
        """Why the trial can never run: what is wrong with the one that it starts from; None if nothing is, or that one has not ended."""
        needs = self.rows[key].depends_on
        if needs is None or self.waits(key) or self.states.get(needs) in _ENOUGH_TO_START_FROM:
            return None
        return (
            f"the trial it starts from, {self.rows[needs].spec_id}, is {self.states[needs]}"
            if needs in self.rows
            else "the trial it starts from is not in this sweep"
        )

    def shape(self, key: str) -> Shape:
        """What the trial needs of a node."""
        return Shape.of(self.rows[key].resources)

    def ready(self) -> dict[Shape, Sequence[str]]:
        """Trials that could start now, in their order."""
        return {shape: keys for shape, keys in self._ready.items() if keys}

    def waiting(self) -> dict[str, Sequence[str]]:
        """Trials by the trial that they start from, which has not ended."""
        return dict(self._waiting)

    @property
    def stuck(self) -> bool:
        """True if trials are open and none of them is ready, running or held elsewhere: they wait for each other."""
        idle = not self.n_ready() and not self.alone and not self.elsewhere
        return self.n_open > 0 and idle and not any(self.counts[state] for state in ACTIVE)

    @property
    def n_open(self) -> int:
        """Trials that are not done."""
        return sum(n for state, n in self.counts.items() if state not in TERMINAL)

    @property
    def n_failed(self) -> int:
        """Trials that failed; a diverged one is a result."""
        return sum(self.counts[state] for state in FAILED)


def owner_of(row: TrialRow) -> str:
    """The sweep whose attempt at the trial is the last one."""
    return str(row.attempts[-1]["sweep"]) if row.attempts else "another sweep"
