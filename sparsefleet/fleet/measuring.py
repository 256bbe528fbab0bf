"""The measure phase: saved networks are timed one after the other, each pass in a fresh child, with nothing else of ours running."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
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
from sparsefleet.measure.passes import MeasureRequest, MeasureResult, Memo, PassResult, run_passes
from sparsefleet.trial import files

_WAIT_S = 0.2


class MeasurePhase:
    """Times what the sweep's networks ask for and what no sweep has timed before.

    The supervisors of the trials are ended first: one remains, so that nothing of ours runs beside a measurement. What was not trustworthy
    is measured once more after all others, when the machine may be quieter.
    """

    def __init__(
        self, ledger: Ledger, sweep: str, pool: Pool, settings: DriverSettings, interrupts: Interrupts, emit: Callable[[Event], None]
    ) -> None:
        self._ledger, self._sweep, self._pool = ledger, sweep, pool
        self._settings, self._interrupts, self._emit = settings, interrupts, emit
        self._asked = settings.measure
        self._rows: dict[str, TrialRow] = {}
        self._memo = Memo()
        self._forget: list[str] = []

    def run(self) -> None:
        """Until all are timed or someone asked to stop."""
        jobs = untimed(self._ledger, self._sweep, self._asked, again=self._settings.remeasure)
        if not jobs:
            return
        self._rows = {row.key: row for row in self._ledger.trials(self._sweep)}
        self._pool.close()
        doubtful: list[tuple[MeasureJob, MeasureResult]] = []
        for done, job in enumerate(jobs):
            result = self._one(job, done, len(jobs))
            if result is None:
                return
            if _is_doubtful(result):
                doubtful.append((job, result))
        for done, (job, first) in enumerate(doubtful):
            if self._one(job, done, len(doubtful), first) is None:
                return
        for key in self._forget:
            shutil.rmtree(Path(self._ledger.home) / "work" / key, ignore_errors=True)

    def _one(self, job: MeasureJob, done: int, total: int, first: MeasureResult | None = None) -> MeasureResult | None:
        """The committed result of one job; None if someone asked to stop."""
        again = first is not None
        self._tell(job, "RUNNING", done, total, again=again)
        request = MeasureRequest(job=job, model=Path(files.MODEL), level=self._asked["level"])
        earlier = [timing.samples_ref for timing in first.timings] if first else []
        result = run_passes(request, self._pass, self._memo, earlier)
        self._forget.append(f"measure-{job.config_key}")
        if result is None:
            return None
        if first is None or result.timings:  # a second measurement that failed takes nothing away
            self._commit(job, result)
        trust = result.timings[0].verdict if result.timings else result.state
        self._tell(job, result.state, done + 1, total, reason=result.reason, verdict=trust, again=again)
        return result

    def _pass(self, request: MeasureRequest) -> PassResult | None:
        """The result of one pass in a fresh child; None if someone asked to stop."""
        row = self._rows[request.job.representative]
        shape = Shape.of(row.resources)
        sent = measure_job(request.model_dump(mode="json", by_alias=True), row.record or {}, self._forget)
        self._forget = []
        for _ in range(LOST_BUDGET):
            message = self._attempt(shape, sent)
            if message is None:
                return None
            if message.kind == "ended" and message.body["end"] != "LOST":
                body = message.body
                if body["end"] == RESULT:
                    return PassResult.model_validate(body["record"])
                return PassResult(state=body["end"], reason=body["reason"])
        return PassResult(state="INFRA_FAILED", reason=f"lost {LOST_BUDGET} times")

    def _attempt(self, shape: Shape, sent: dict[str, Any]) -> Message | None:
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

    def _commit(self, job: MeasureJob, result: MeasureResult) -> None:
        self._ledger.commit_timing(
            self._sweep,
            job.config_key,
            job.keys,
            result.state,
            [timing.model_dump(mode="json") for timing in result.timings],
            samples=result.body.encode() if result.body else None,
            reason=result.reason,
        )

    def _tell(self, job: MeasureJob, state: str, done: int, total: int, **more: Any) -> None:
        data = {"config_key": job.config_key, "state": state, "done": done, "total": total, "reason": None, **more}
        self._emit(Event("measure", {**data, "op": job.op, "batch_size": job.batch_size, "spec_id": job.spec.spec_id}))


def _is_doubtful(result: MeasureResult) -> bool:
    return any("NOT_TRUSTWORTHY" in (timing.verdict, timing.rival_verdict) for timing in result.timings)
