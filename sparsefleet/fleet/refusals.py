"""Nodes on which this sweep's supervisors cannot start, why, and until when they are left alone. Knows nothing of Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sparsefleet.errors import SparsefleetError, VersionSkew
from sparsefleet.redact import redacted

_FIRST_S, _MOST_S = 5.0, 600.0
_ENOUGH = 2
"""Tries after which a sweep that has not begun gives the node up: a store may be away for a second."""
_NAMED = 3
_MOST_CHARACTERS = 200


@dataclass
class _Refusal:
    reason: str
    n: int
    until: float
    told: bool


class Refusals:
    """A node that failed is tried again, later each time, and is as good as any other once a supervisor there is accepted.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[str, _Refusal] = {}

    def add(self, node: str, name: str, reason: str, *, sure: bool = True) -> str | None:
        """A supervisor failed there: a sentence on it; empty if there is nothing to say, None if the node is being left alone already.

        Args:
            sure: the node is to blame; else it is told of only when it happens again, since the whole node may be gone in a moment.
        """
        before, now = self._known.get(node), self._clock()
        if before and now < before.until:
            return None
        n = before.n + 1 if before else 1
        known = before is not None and before.told and before.reason == reason
        tell = not known and (sure or n >= _ENOUGH)
        self._known[node] = _Refusal(reason, n, now + min(_MOST_S, _FIRST_S * 2 ** min(n - 1, 10)), known or tell)
        return f"{name} is left alone for now, and tried again from time to time: {reason}" if tell else ""

    def forgive(self, node: str) -> None:
        """A supervisor there was accepted."""
        self._known.pop(node, None)

    def keep(self, alive: Iterable[str]) -> None:
        """Forget nodes that are gone."""
        living = set(alive)
        self._known = {node: refusal for node, refusal in self._known.items() if node in living}

    def closed(self) -> dict[str, str]:
        """Why nothing is started there now, by Ray's id of the node."""
        now = self._clock()
        return {node: f"is left alone for now: {refusal.reason}" for node, refusal in self._known.items() if now < refusal.until}

    def reasons(self) -> dict[str, str]:
        """Of all that failed and have not been accepted since, also those about to be tried again."""
        return {node: refusal.reason for node, refusal in self._known.items()}

    def given_up(self) -> set[str]:
        """Those that failed often enough for a sweep that has not begun."""
        return {node for node, refusal in self._known.items() if refusal.n >= _ENOUGH}


def brief(error: BaseException) -> str:
    """One line on an error of a supervisor. Of a failed start Ray tells the stack; what was raised comes last."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, SparsefleetError):  # it says what to do
        return redacted("; ".join(" ".join(line.split()) for line in str(cause).splitlines()))[: 2 * _MOST_CHARACTERS]
    if isinstance(cause, BaseException):
        return redacted(f"{type(cause).__name__}: {(str(cause).splitlines() or [''])[0]}")[:_MOST_CHARACTERS]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return redacted(lines[-1])[:_MOST_CHARACTERS] if lines else type(error).__name__


def other_code(skew: VersionSkew) -> str:
    """What differs, in one line."""
    told = [f"{what} is {', '.join(there.values())}, not {shown}" for what, (shown, there) in skew.differences.items()]
    more = f" and {len(told) - _NAMED} more" if len(told) > _NAMED else ""
    return f"it runs other code than the sweep was submitted with: {'; '.join(told[:_NAMED])}{more}"
