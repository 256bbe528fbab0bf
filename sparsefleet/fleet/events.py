"""What the driver is told and what it tells. Imports neither ray nor torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Kind = Literal["sweep", "trial", "progress", "measure", "upload", "note", "fleet"]

FLEET_EVERY_S = 1.0
WAITING_KEYS = 20


@dataclass(frozen=True)
class Event:
    """Something the user may want to see. ``data`` is JSON.

    ========  ==========================================================================================================
    sweep     ``sweep, state, counts, eta_s``
    trial     ``key, spec_id, ordinal, attempt, state, node, reason, wall_s`` and ``counts, eta_s`` of the sweep
    progress  ``key, spec_id, attempt, node`` and what the trial reports: ``step, total_steps, epoch, loss, accuracy``
    measure   ``config_key, state, done, total, reason``
    upload    ``waiting``
    note      ``text``
    fleet     ``sweep, time, nodes, waiting``: where trials run and why the others wait; at most every ``FLEET_EVERY_S`` seconds
    ========  ==========================================================================================================

    ``nodes`` of ``fleet`` is a list of ``{node, state, slots, busy, cpus, cpus_used, gpus, gpus_used, trials}``: ``state`` is ``alive``,
    ``silent`` or ``refused`` (no supervisor starts there), ``slots`` this sweep's supervisors there and ``busy`` those that run a trial, ``cpus_used`` and ``gpus_used`` what anybody
    holds, ``trials`` the keys of what they run. ``waiting`` is a list of ``{why, n, keys, resources}``: a sentence, how many trials it holds for,
    the first ``WAITING_KEYS`` of them, and what such a trial asks for (None where that is not the point); a trial is in at most one, and each
    that is PENDING in one. ``sparsefleet.fleet.waiting.reason_of`` says from them why a given trial waits.
    """

    kind: Kind
    data: dict[str, Any]


@dataclass(frozen=True)
class DriverSettings:
    """How a sweep is run; nothing here changes a result.

    Attributes:
        address: a Ray cluster, or ``local`` for one on this machine that ends with the sweep.
        max_parallel: trials at once; None: as many as fit.
        cpus: what a local Ray may use; None: the cores that this process may use.
        measure: ``{"level":, "batch_sizes":, "ops":}``; ``{"level": "none"}`` or empty skips the measure phase.
        mlflow_uri: where the uploader writes; None: its default.
        only_failed: put failed trials back into the queue first.
        remeasure: take timings that were not trusted once more.
    """

    data_root: Path
    address: str = "local"
    max_parallel: int | None = None
    cpus: int | None = None
    measure: dict[str, Any] = field(default_factory=dict)
    mlflow_uri: str | None = None
    only_failed: bool = False
    remeasure: bool = False
