"""What the ledger gives and takes, as plain frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ACTIVE = ("LEASED", "RUNNING")
"""States in which a driver holds the trial."""
FAILED = ("INCORRECT", "PLUGIN_ERROR", "CRASHED", "POISONED", "TIMEOUT", "OOM", "INVALID", "INFRA_FAILED")
"""Terminal states that ``retry_failed`` puts back; the same set as ``sparsefleet.trial.record.FAILED`` (a test compares them)."""
TERMINAL = ("SUCCEEDED", "DIVERGED", "CANCELLED", *FAILED)
TIMED = ("SUCCEEDED", *FAILED)
"""What may become of a timing."""
NOT_TAKEN = ("INFRA_FAILED",)
"""Of timings: the fleet was to blame, so that a sweep which has one has not ended."""
LIVE_SWEEP = ("RUNNING", "MEASURING")
"""Sweep states that are true only while a driver holds the sweep's lock."""


@dataclass(frozen=True)
class SweepTrial:
    """One trial as a sweep asks for it."""

    ordinal: int
    key: str
    spec_id: str
    spec: dict[str, Any]
    arm: str
    twin_key: str | None = None
    rival_key: str | None = None
    depends_on: str | None = None
    resources: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    request: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialRow(SweepTrial):
    """One trial of a sweep as it stands.

    ``state`` is what is true now: a trial held by a dead driver reads PENDING, a waiting trial of a cancelled sweep CANCELLED.
    Each of ``attempts`` is ``{n, sweep, node, started, ended, end, reason, t_s}``.
    """

    state: str = "PENDING"
    attempt: int = 0
    node: str | None = None
    reason: str | None = None
    started: str | None = None
    ended: str | None = None
    record: dict[str, Any] | None = None
    attempts: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class SweepRow:
    """One sweep. ``counts`` holds trials by state, and ``total`` and ``cached`` (already committed when the sweep was created)."""

    sweep: str
    name: str
    digest: str
    grid_text: str
    state: str
    created: str
    ended: str | None
    settings: dict[str, Any]
    counts: dict[str, int]


@dataclass(frozen=True)
class TimingRow:
    """The timings of one configuration, and the trials that it stands for; ``created`` is when they were taken, whoever shows them."""

    config_key: str
    keys: list[str]
    state: str
    timings: list[dict[str, Any]]
    samples_ref: str | None
    reason: str | None
    created: str = ""


@dataclass(frozen=True)
class OutboxItem:
    """Something that the tracking server has not seen yet.

    ``kind`` is sweep, trial, timing or table. A trial's payload is ``{"attempt": n, "state": …, "shared": bool}``: the record is in
    the ledger under ``key``. ``shared`` means that ``sweep`` shows a trial which another sweep ran and reported as its own. ``place`` and
    ``spec_ids`` (of its twin and rival, by key) are in the payload of a trial that ``sweep`` does not show any more. A timing's
    payload is ``{"config_key": …}``, with ``key`` the same, and ``former``, keys of trials that it stood for until now.
    """

    id: int
    kind: str
    sweep: str
    key: str | None
    payload: dict[str, Any]
    created: str
    attempts: int
