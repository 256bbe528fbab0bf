"""The measure phase: saved networks are timed one after the other, each pass in a fresh child, with nothing else of ours running."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sparsefleet.errors import VersionSkew
from sparsefleet.fleet.events import FLEET_EVERY_S, DriverSettings, Event
from sparsefleet.fleet.interrupts import Interrupts
from sparsefleet.fleet.jobs import measure_job
from sparsefleet.fleet.outcome import DAMAGED, LOST_BUDGET, RESULT, WAITS
from sparsefleet.fleet.pool import Pool
from sparsefleet.fleet.preflight import check_nodes
from sparsefleet.fleet.refusals import other_code
from sparsefleet.fleet.room import Room
from sparsefleet.fleet.shape import Shape
from sparsefleet.fleet.slots import Message
from sparsefleet.fleet.untimed import untimed
from sparsefleet.fleet.waiting import waits_for_device, waits_to_measure
from sparsefleet.home import local_store
from sparsefleet.ledger import Ledger, TrialRow
from sparsefleet.ledger.rows import TimingRow
from sparsefleet.measure.assemble import beside
from sparsefleet.measure.config import MeasureJob, harness_digest
from sparsefleet.measure.lease import WAITS_FOR
from sparsefleet.measure.passes import MeasureRequest, MeasureResult, Memo, PassResult, limits_of, run_passes
from sparsefleet.measure.verdict import beats_limit, is_doubtful, trust
from sparsefleet.trial import files

_WAIT_S = 0.2
_BELIEVED_S = 3.0
"""A measurement that waits for another one says so every second."""


class MeasurePhase:
    """Times what the sweep's networks ask for and what no sweep has timed before.

    The supervisors of the trials are ended first: one remains, so that nothing of ours runs beside a measurement. What was not trustworthy
    is measured once more after all others, when the machine may be quieter: with the machine's limits and the baselines chosen anew. Of two
    measurements the one whose headline can be trusted counts (then its other figures, then the newer one); its timing names the others.

    Attributes:
        damaged: the trained network that is not what was stored, by trial key with the reason: it ended the phase, and has to be made again.
    """

    def __init__(
        self, ledger: Ledger, sweep: str, pool: Pool, settings: DriverSettings, interrupts: Interrupts, emit: Callable[[Event], None]
    ) -> None:
        self._ledger, self._sweep, self._pool = ledger, sweep, pool
        self._settings, self._interrupts, self._emit = settings, interrupts, emit
        self._asked = settings.measure
        self._rows: dict[str, TrialRow] = {}
        self._to_time: list[TrialRow] = []
        self._known: dict[str, TimingRow] = {}
        self._memo = Memo()
        self._forget: list[str] = []
        self._tell_at = 0.0
        self._room = Room([ledger.home, *local_store()], emit, "measurements")
        self._waits: tuple[str, float] = ("", 0.0)
        self.damaged: dict[str, str] = {}

    def run(self) -> None:
        """Until all are timed or someone asked to stop, or a network turns out to be damaged.

        Raises:
            BackendUnreachable: the artifact store stays away, or a disk is full; what has not been timed is left to the next driver.
            VersionSkew: the node that is to measure runs other code than the timings are stored under.
        """
        try:
            self._measure()
        except _Damaged as found:
            self._pool.close()
            self.damaged = {found.key: found.reason.splitlines()[0]}

    def _measure(self) -> None:
        jobs = self._untimed()
        if not jobs:
            return
        needed = ("artifacts", "spec_id")  # of a record; ten thousand whole ones would fill the memory
        self._interrupts.is_starting = False
        self._rows = {row.key: row for row in self._ledger.trials(self._sweep, with_record=needed, with_attempts=False)}
        self._to_time = [self._rows[key] for job in jobs for key in self._nets(job)]
        self._pool.close()
        limits = limits_of(self._request(jobs[0]), self._pass, self._memo)
        if limits is None:
            return
        jobs = self._untimed(limits.facts.get("machine"))
        again = self._round(jobs)
        if again:
            beaten = any(beats_limit(timing.model_dump()) for _, result in again for timing in result.timings)
            self._memo = Memo(refresh=beaten)
            again = self._round([job for job, _ in again], again=True)
        if again is not None:
            for key in self._forget:
                shutil.rmtree(Path(self._ledger.home) / "work" / key, ignore_errors=True)

    def _nets(self, job: MeasureJob) -> list[str]:
        """Keys of the trials whose networks take part, those of this sweep."""
        row = self._rows[job.representative]
        return [key for key in (row.key, row.twin_key, row.rival_key) if key in self._rows]

    def _untimed(self, machine: str | None = None) -> list[MeasureJob]:
        return untimed(self._ledger, self._sweep, self._asked, again=self._settings.remeasure, machine=machine)

    def _round(self, jobs: Sequence[MeasureJob], *, again: bool = False) -> list[tuple[MeasureJob, MeasureResult]] | None:
        """Measures and commits all; those worth another try; None if someone asked to stop."""
        self._known = {row.config_key: row for row in self._ledger.timings(self._sweep, every=True)}
        found = []
        for done, job in enumerate(jobs):
            self._tell(job, "RUNNING", done, len(jobs), again=again)
            result = run_passes(self._request(job), self._pass, self._memo, self._earlier(job))
            self._forget.append(f"measure-{job.config_key}")
            if result is None:
                return None
            self._settle(job, result)
            verdict = result.timings[0].verdict if result.timings else result.state
            self._tell(job, result.state, done + 1, len(jobs), reason=result.reason, verdict=verdict, again=again)
            if result.state == "INFRA_FAILED" or any(is_doubtful(timing.model_dump()) for timing in result.timings):
                found.append((job, result))
        return found

    def _request(self, job: MeasureJob) -> MeasureRequest:
        return MeasureRequest(job=job, model=Path(files.MODEL), level=self._asked["level"])

    def _earlier(self, job: MeasureJob) -> list[str]:
        """The raw samples of all measurements of the job that the ledger knows of, by reference."""
        known = self._known.get(job.config_key)
        return [ref for timing in (known.timings if known else ()) for ref in (*timing.get("earlier", ()), timing["samples_ref"])]

    def _settle(self, job: MeasureJob, result: MeasureResult) -> None:
        """Commits the measurement, or the one before it if that can be trusted in more: a busy machine takes no figure away."""
        known = self._known.get(job.config_key)
        if known is None or not known.timings or result.state == "INCORRECT":  # what computes something wrong has no time
            self._commit(job, result)
        elif result.timings:
            newer = result.timings[0]
            with self._ledger.batch():
                self._commit(job, result)
                if trust(known.timings[0]) > trust(newer.model_dump()):
                    older, body = beside(self._ledger.samples(str(known.samples_ref)), [newer.samples_ref])
                    self._commit(job, result.model_copy(update={"timings": [older], "body": body.decode()}))

    def _pass(self, request: MeasureRequest) -> PassResult | None:
        """The result of one pass in a fresh child; None if someone asked to stop."""
        row = self._rows[request.job.representative]
        shape = Shape.of(row.resources)
        sent = measure_job(request.model_dump(mode="json", by_alias=True), row.record or {}, self._forget)
        self._forget = []
        n_lost = 0
        while n_lost < LOST_BUDGET:
            message = self._attempt(shape, sent)
            if message is None:
                return None
            body = message.body
            end = body["end"] if message.kind == "ended" else "LOST"
            if end == RESULT:
                self._room.fine()
                return PassResult.model_validate(body["record"])
            if end == WAITS:
                self._room.refused(body["reason"])
            elif end == DAMAGED:
                raise _Damaged(row.key, body["reason"])
            elif end not in ("LOST", "KILLED"):
                return PassResult(state=end, reason=body["reason"])
            else:
                n_lost += 1
        return PassResult(state="INFRA_FAILED", reason=f"lost {LOST_BUDGET} times")

    def _attempt(self, shape: Shape, sent: dict[str, Any]) -> Message | None:
        """How one attempt ended; None if someone asked to stop. While the store is away or a disk is full, none begins.

        Raises:
            BackendUnreachable: that lasts.
        """
        waiting = True
        while not self._interrupts.stopping:
            if waiting:
                self._pool.adjust_whole(shape)
                for slot, description in self._pool.greet():
                    try:  # it may have come late, or the trials were there already
                        check_nodes([description], self._to_time, harness_digest())
                        slot.ready = True
                    except VersionSkew as error:
                        if not self._pool.has_another(slot):
                            raise
                        self._pool.refuse(slot, other_code(error))
                room = [slot for slot in self._pool.with_room(1) if slot.shape == shape and slot.whole]
                if self._room.closed():
                    if self._room.error:
                        raise self._room.error
                elif room:
                    self._pool.send(room[0], sent)
                    waiting = False
            self._tell_waiting(shape)
            for message in self._pool.hear(_WAIT_S):
                if message.kind == "progress" and WAITS_FOR in message.body["values"]:
                    self._waits = str(message.body["values"][WAITS_FOR]), time.monotonic()
                if message.kind in ("ended", "lost"):
                    return message
        return None

    def _tell_waiting(self, shape: Shape) -> None:
        now = time.monotonic()
        if now >= self._tell_at:
            self._tell_at = now + FLEET_EVERY_S
            why, said_at = self._waits
            waiting = [waits_for_device(why)] if why and now - said_at < _BELIEVED_S else []
            if not any(slot.ready for slot in self._pool.slots):
                waiting = [waits_to_measure(shape, *self._pool.places())]
            self._emit(self._pool.event(self._sweep, waiting))

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


class _Damaged(Exception):
    """A trained network is not what was stored."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(reason)
        self.key, self.reason = key, reason
