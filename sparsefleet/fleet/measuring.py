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
from sparsefleet.fleet.untimed import untimed
from sparsefleet.ledger import Ledger, TrialRow
from sparsefleet.measure.config import MeasureJob

_WAIT_S = 0.2


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

    def run(self) -> None:
        """Until all are timed or someone asked to stop."""
        jobs = untimed(self._ledger, self._sweep, self._asked, again=self._settings.remeasure)
        if not jobs:
            return
        self._rows = {row.key: row for row in self._ledger.trials(self._sweep)}
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
