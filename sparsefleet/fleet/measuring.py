"""The measure phase: saved networks are timed one after the other, each in a fresh child, with nothing else of ours running."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparsefleet.fleet.events import DriverSettings, Event
from sparsefleet.fleet.interrupts import Interrupts
from sparsefleet.fleet.jobs import measure_job
from sparsefleet.fleet.outcome import LOST_BUDGET, RESULT
from sparsefleet.fleet.pool import Message, Pool
from sparsefleet.fleet.queue import Shape
from sparsefleet.ledger import Ledger, TrialRow
from sparsefleet.measure.config import MeasureJob, groups

_WAIT_S = 0.2
_KEPT_STATES = ("SUCCEEDED", "INCORRECT", "OOM")
"""Ends that are a fact of the configuration: another sweep need not find them out again."""


class MeasurePhase:
    """Times what the sweep's networks ask for and what no sweep has timed before.

    The supervisors of the trials are ended first: one remains, so that nothing of ours runs beside a measurement.
    """

    def __init__(
        self, ledger: Ledger, sweep: str, pool: Pool, settings: DriverSettings, interrupts: Interrupts, emit: Callable[[Event], None]
    ) -> None:
        self._ledger, self._sweep, self._pool = ledger, sweep, pool
        self._settings, self._interrupts, self._emit = settings, interrupts, emit
        self._asked = settings.measure
        self._rows: dict[str, TrialRow] = {}

    def jobs(self) -> list[MeasureJob]:
        """What is not timed yet; timings that another sweep took are taken over."""
        if self._asked.get("level", "none") == "none":
            return []
        self._rows = {row.key: row for row in self._ledger.trials(self._sweep)}
        wanted = groups(self._rows.values(), self._asked.get("batch_sizes", [64]), self._asked.get("ops", ["forward", "step"]))
        have = {row.config_key: row for row in self._ledger.timings(self._sweep)}
        left: list[MeasureJob] = []
        with self._ledger.batch():
            for job in wanted:
                known = have.get(job.config_key) or self._ledger.timing(job.config_key, _KEPT_STATES)
                if known is None:
                    left.append(job)
                elif known.config_key not in have or set(known.keys) != set(job.keys):
                    self._ledger.share_timing(self._sweep, known, job.keys)
        return left

    def run(self) -> None:
        """Until all are timed or someone asked to stop."""
        jobs = self.jobs()
        if not jobs:
            return
        self._pool.close()
        for done, job in enumerate(jobs):
            self._tell(job, "RUNNING", done, len(jobs))
            body = self._measured(job)
            if body is None:
                return
            self._commit(job, body)
            self._tell(job, body["state"], done + 1, len(jobs), reason=body.get("reason"))

    def _measured(self, job: MeasureJob) -> dict[str, Any] | None:
        """The result of one job as JSON; None if someone asked to stop."""
        row = self._rows[job.representative]
        shape = Shape.of(row.resources)
        sent = measure_job(job.model_dump(mode="json", by_alias=True), row.record or {}, str(self._asked["level"]))
        for _ in range(LOST_BUDGET):
            message = self._one(shape, sent)
            if message is None:
                return None
            if message.kind == "ended" and message.body["end"] != "LOST":
                body = message.body
                if body["end"] == RESULT:
                    result: dict[str, Any] = body["record"]
                    return result
                return {"state": body["end"], "reason": body["reason"], "timings": [], "samples": None}
        return {"state": "INFRA_FAILED", "reason": f"lost {LOST_BUDGET} times", "timings": [], "samples": None}

    def _one(self, shape: Shape, sent: dict[str, Any]) -> Message | None:
        """How one attempt ended."""
        waiting = True
        while not self._interrupts.stopping:
            if waiting:
                self._pool.adjust({shape: 1})
                for slot, _ in self._pool.greet():
                    slot.ready = True  # its code was checked before the trials, and the result names what it timed
                room = [slot for slot in self._pool.with_room(1) if slot.shape == shape]
                if room:
                    self._pool.send(room[0], sent)
                    waiting = False
            for message in self._pool.hear(_WAIT_S):
                if message.kind in ("ended", "lost"):
                    return message
        return None

    def _commit(self, job: MeasureJob, body: dict[str, Any]) -> None:
        samples = body.get("samples")
        self._ledger.commit_timing(
            self._sweep,
            job.config_key,
            job.keys,
            body["state"],
            body["timings"],
            samples=samples.encode() if samples else None,
            reason=body.get("reason"),
        )

    def _tell(self, job: MeasureJob, state: str, done: int, total: int, reason: str | None = None) -> None:
        data = {"config_key": job.config_key, "state": state, "done": done, "total": total, "reason": reason}
        self._emit(Event("measure", {**data, "op": job.op, "batch_size": job.batch_size, "spec_id": job.spec.spec_id}))
