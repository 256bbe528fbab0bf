"""Attempts, committed records, raw samples and the outbox: one SQLite file per home, and files by digest beside it."""

from sparsefleet.ledger.ledger import Ledger, open_ledger, read_ledger
from sparsefleet.ledger.lock import SweepLock, is_held
from sparsefleet.ledger.rows import FAILED, TERMINAL, OutboxItem, SweepRow, SweepTrial, TimingRow, TrialRow
from sparsefleet.ledger.store import ArtifactRef, ArtifactStore

__all__ = [
    "FAILED",
    "TERMINAL",
    "ArtifactRef",
    "ArtifactStore",
    "Ledger",
    "OutboxItem",
    "SweepLock",
    "SweepRow",
    "SweepTrial",
    "TimingRow",
    "TrialRow",
    "is_held",
    "open_ledger",
    "read_ledger",
]
