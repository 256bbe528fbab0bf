"""On which machine a timing was taken, and which of them stand in one table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from sparsefleet.errors import SparsefleetError

if TYPE_CHECKING:
    from sparsefleet.ledger.rows import TimingRow

Fingerprint = dict[str, Any]
_TOLD = 4


class Machines:
    """The fingerprints of a sweep's timings; the one that the newest timing carries is the table's.

    Args:
        rows: what was measured.
        samples: gives the raw samples by their reference; asked only where machines differ, to say in what.
        mixed: show the timings of all of them.
    """

    def __init__(self, rows: Iterable[TimingRow], samples: Callable[[str], bytes] | None = None, *, mixed: bool = False) -> None:
        self.mixed = mixed
        self._samples = samples
        self._ref: dict[str, str | None] = {}
        self.newest: str | None = None
        for row in sorted(rows, key=lambda row: row.created):
            for timing in row.timings:
                self.newest = timing["fingerprint"]
                self._ref[self.newest] = row.samples_ref
        self._told: dict[str, list[str]] = {}

    def shows(self, fingerprint: str) -> bool:
        """True if a timing of this machine stands in the table."""
        return self.mixed or fingerprint == self.newest

    def differing(self, fingerprint: str) -> list[str]:
        """In what this machine is not the table's, e.g. ``torch: 2.14 against 2.15``; empty where its facts cannot be read."""
        if fingerprint not in self._told:
            ours, theirs = self._facts(self.newest), self._facts(fingerprint)
            self._told[fingerprint] = _differences(theirs, ours) if ours and theirs else []
        return self._told[fingerprint]

    def _facts(self, fingerprint: str | None) -> dict[str, Any] | None:
        """The whole fingerprint, which lies beside the raw samples."""
        ref = self._ref.get(fingerprint or "")
        if ref is None or self._samples is None:
            return None
        try:
            body = json.loads(self._samples(ref))
        except (SparsefleetError, ValueError):  # samples of another protocol, or gone: the ids alone still tell that they differ
            return None
        found = body.get("fingerprint")
        return found if isinstance(found, dict) else None


def _differences(one: Fingerprint, other: Fingerprint) -> list[str]:
    from sparsefleet.measure.fingerprint import differences

    found = differences(one, other)
    return [*found[:_TOLD], *([f"and {len(found) - _TOLD} more"] if len(found) > _TOLD else [])]
