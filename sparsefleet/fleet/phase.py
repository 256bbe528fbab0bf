"""Running a sweep's trials to their ends: the loop of the driver."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from sparsefleet.crash_points import passing
from sparsefleet.errors import SparsefleetError, VersionSkew
from sparsefleet.fleet.events import FLEET_EVERY_S, DriverSettings, Event
from sparsefleet.fleet.forward import append
from sparsefleet.fleet.history import Histories
from sparsefleet.fleet.interrupts import Interrupts
from sparsefleet.fleet.jobs import trial_job
from sparsefleet.fleet.logs import LOG, log_path
from sparsefleet.fleet.outcome import BUSY, DAMAGED, WAITS, Outcome, judge
from sparsefleet.fleet.pool import Pool
from sparsefleet.fleet.preflight import check_nodes
from sparsefleet.fleet.queue import TrialQueue, owner_of
from sparsefleet.fleet.refusals import other_code
from sparsefleet.fleet.room import Room
from sparsefleet.fleet.shape import Shape
from sparsefleet.fleet.slots import Message, Slot
from sparsefleet.fleet.waiting import reasons
from sparsefleet.home import local_store
from sparsefleet.ledger import TERMINAL, Ledger, TrialRow
from sparsefleet.ledger.rows import ACTIVE, FAILED

DRAIN_S = 3.0
_WAIT_S = 0.2
_ELSEWHERE_S = 1.0
_BREAKER = 10
_QUICK_S = 2.0
"""Trials shorter than this are worth queueing behind each other."""


class TrialPhase:
    """Feeds the pool from the queue and writes what comes back.

    Attributes:
        tripped: the error with which the first trials all failed, if they did.
    """

    def __init__(
        self, ledger: Ledger, sweep: str, pool: Pool, settings: DriverSettings, interrupts: Interrupts, emit: Callable[[Event], None]
    ) -> None:
        self._ledger, self._sweep, self._pool = ledger, sweep, pool
        self._settings, self._interrupts, self._emit = settings, interrupts, emit
        self.queue = TrialQueue(ledger.trials(sweep, with_record=False, with_attempts=False))
        self.tripped: str | None = None
        self._room = Room([ledger.home, *local_store()], emit)
        self._first_ends: list[str | None] = []
        before = Counter(_brief(row.state, row.reason or "") for row in self.queue.rows.values())
        self._accepted = {end for end, n in before.items() if end is not None and n >= _BREAKER}
        self._walls: deque[float] = deque(maxlen=20)
        self._begun = time.monotonic()
        self._n_done = 0
        self._look_elsewhere_at = 0.0
        self._tell_fleet_at = 0.0
        self._alone = False
        self.queue.elsewhere = {key: owner_of(ledger.trial(key, sweep=sweep)) for key in self.queue.elsewhere}
        self._solo: set[str] = set()
        for key in [key for keys in self.queue.ready().values() for key in keys]:
            if self.queue.rows[key].attempt and "OOM" in ledger.ends(key):
                self._solo.add(key)
                self.queue.run_alone(key)
        self._histories = Histories(ledger.home)
        self._cut: set[str] = set()
        self._busy: set[str] = set()

    def run(self) -> None:
        """Until every trial is terminal, or someone asked to stop, or the first ones all failed alike."""
        self._preflight()
        self._interrupts.is_starting = False
        self._begun = time.monotonic()
        while self.queue.n_open and not self._interrupts.stopping and not self.tripped:
            self._pool.adjust(self._needs())
            self._greet()
            if not self._room.closed():
                self._feed()
            elif self._room.error and not self._pool.n_busy:
                raise self._room.error
            self._take(self._pool.hear(_WAIT_S))
            self._look_elsewhere()
            self._tell_fleet()
            if self.queue.stuck:
                raise SparsefleetError(
                    f"{self.queue.n_open} trials of {self._sweep} wait for each other", cause="their start trials form a circle"
                )
        if self._pool.n_busy:
            self._drain()

    def _needs(self) -> dict[Any, int]:
        needs = {shape: self.queue.n_ready(shape) for shape in self.queue.shapes()}
        for slot in self._pool.slots:
            if slot.shape in needs:
                needs[slot.shape] += len(slot.jobs)
        if self.queue.alone and not needs:
            needs[self.queue.shape(self.queue.alone[0])] = 1
        return needs

    def _preflight(self) -> None:
        """Nothing is queued before every node that answers and every first supervisor has shown its code."""
        descriptions, told = self._pool.describe(
            {Shape.of(row.resources) for row in self._open_rows() if row.key not in self.queue.elsewhere}
        )
        check_nodes(descriptions, self._open_rows())
        for text in told:
            self._emit(Event("note", {"text": text}))
        self._pool.adjust(self._needs())
        while self._needs() and self._pool.starting and not self._interrupts.stopping:
            self._pool.adjust(self._needs())
            self._greet()
            self._pool.hear(_WAIT_S)
            self._look_elsewhere()
            self._tell_fleet()

    def _greet(self) -> None:
        for slot, description in self._pool.greet():
            try:
                check_nodes([description], self._open_rows())
            except VersionSkew as error:
                if not self._pool.accepted:
                    raise
                self._pool.refuse(slot, other_code(error))  # a node that came late ends nothing
                continue
            slot.ready = True

    def _open_rows(self) -> list[TrialRow]:
        return [row for key, row in self.queue.rows.items() if self.queue.states[key] not in TERMINAL]

    # out

    def _feed(self) -> None:
        if self._alone or (self.queue.alone and not self.queue.n_ready()):
            self._feed_alone()
            return
        quick = len(self._walls) >= 4 and sum(self._walls) / len(self._walls) < _QUICK_S
        chosen: list[tuple[Slot, dict[str, Any]]] = []
        with self._ledger.batch():
            for depth in (1, 2) if quick else (1,):
                room = [s for s in self._pool.with_room(depth) if len(s.jobs) + sum(1 for t, _ in chosen if t is s) < depth]
                for slot in room:
                    job = self._next(slot)
                    if job:
                        chosen.append((slot, job))
        if chosen:
            passing("lease-after")
        for slot, job in chosen:  # durable before it runs
            self._pool.send(slot, job)

    def _feed_alone(self) -> None:
        """A trial that ran out of memory gets one more try with nothing beside it."""
        if self._pool.n_busy:
            return
        self._alone = False
        if not self.queue.alone:
            return
        room = [slot for slot in self._pool.with_room(1) if slot.shape == self.queue.shape(self.queue.alone[0])]
        if room:
            key = self.queue.alone.popleft()
            job = self._leased(key, room[0])
            if job:
                self._alone = True
                self._pool.send(room[0], job)

    def _next(self, slot: Slot) -> dict[str, Any] | None:
        while (key := self.queue.take(slot.shape)) is not None:
            job = self._leased(key, slot)
            if job:
                return job
        return None

    def _leased(self, key: str, slot: Slot) -> dict[str, Any] | None:
        """The job of a new attempt; None if the trial is not ours to run."""
        row = self.queue.rows[key]
        broken = self.queue.broken_start(key)
        if broken:
            if self._ledger.refuse(key, "INVALID", broken):
                self._ended(key, row.attempt, "INVALID", broken, 0.0)
            else:
                self._learn(key)
            return None
        if self.queue.waits(key):  # its start was reopened
            self.queue.give_back(key)
            return None
        attempt = self._ledger.lease(key, self._sweep, slot.node)
        if attempt is None:
            self._learn(key)
            return None
        start = self._ledger.trial(row.depends_on).record if row.depends_on else None
        self.queue.mark(key, "LEASED")
        self._histories.write(key, "leased", attempt, slot.node, sweep=self._sweep)
        job = trial_job(row, attempt, self._settings.data_root, start)
        return {**job, "folder": f"{key}.{attempt}"} if key in self._busy else job

    def _learn(self, key: str) -> None:
        """Another sweep holds it or has ended it."""
        row = self._ledger.trial(key, sweep=self._sweep)
        if row.state in TERMINAL:
            self._ended(key, row.attempt, row.state, row.reason or "", 0.0)
        elif row.state in ACTIVE:
            self.queue.elsewhere[key] = owner_of(row)
            self.queue.mark(key, row.state)
        else:
            self.queue.give_back(key)

    def _look_elsewhere(self) -> None:
        now = time.monotonic()
        if now < self._look_elsewhere_at:
            return
        self._look_elsewhere_at = now + _ELSEWHERE_S
        for key in list(self.queue.elsewhere):
            if self._ledger.trial(key, sweep=self._sweep).state not in ACTIVE:
                self.queue.elsewhere.pop(key, None)
                self._learn(key)

    # in

    def _take(self, messages: list[Message]) -> None:
        if not messages:
            return
        said: list[Event] = []
        emit, self._emit = self._emit, said.append  # whatever the listener does comes after the commit, and cannot undo it
        try:
            with self._ledger.batch():
                for message in messages:
                    self._hear(message)
        finally:
            self._emit = emit
        for event in said:
            emit(event)

    def _hear(self, message: Message) -> None:
        key, attempt = message.job["key"], message.job["attempt"]
        row, node = self.queue.rows[key], message.slot.node
        if message.kind == "started":
            if self._ledger.mark_running(key, attempt, node):
                self.queue.mark(key, "RUNNING")
                self._histories.write(key, "started", attempt, node)
                self._tell(key, attempt, "RUNNING", node)
        elif message.kind == "progress":
            self._histories.write(key, "progress", attempt, node, **message.body["values"])
            self._emit(
                Event(
                    "progress",
                    {"key": key, "spec_id": row.spec_id, "attempt": attempt, "node": node, **message.body["values"]},
                )
            )
        elif message.kind == "output":
            append(log_path(self._ledger.home, key, attempt), message.body["text"])
            if message.body["cut"]:
                self._cut.add(key)
        elif message.kind == "late":
            self._refuse_late(message)
        elif message.kind == "lost":
            end = "LOST" if message.body["ran"] else "INTERRUPTED"  # one that only waited behind another lost nothing
            self._conclude(message, Outcome(end, message.body["reason"]))
        elif message.kind == "ended":
            self._conclude(message, _outcome(message))

    def _refuse_late(self, message: Message) -> None:
        """A supervisor that was given up brings a result after all. The ledger's fence decides, here as everywhere: the attempt has ended."""
        key, attempt, node = message.job["key"], message.job["attempt"], message.slot.node
        outcome = _outcome(message)
        if outcome.record is not None and self._ledger.commit(key, attempt, outcome.record):
            raise SparsefleetError(f"the ledger took the late result of attempt {attempt} of trial {self.queue.rows[key].spec_id}")
        self._histories.write(key, "late", attempt, node, end=outcome.end, reason="given up before; the result is refused")
        text = f"{self.queue.rows[key].spec_id}: {node} brought a result of attempt {attempt}, which had been given up; it is refused"
        self._emit(Event("note", {"text": text}))

    def _conclude(self, message: Message, outcome: Outcome) -> None:
        key, attempt = message.job["key"], message.job["attempt"]
        end = str(outcome.record["state"]) if outcome.record else outcome.end
        self._histories.write(
            key,
            "lost" if message.kind == "lost" else "ended",
            attempt,
            message.slot.node,
            end=end,
            reason=outcome.reason,
            wall_s=outcome.wall_s,
        )
        if outcome.reason == BUSY:  # a stopped process may hold the folder, and its checkpoint, for as long as it likes
            self._busy.add(key)
        if outcome.end in ("INTERRUPTED", WAITS, DAMAGED):
            if self._ledger.end_attempt(key, attempt, "INTERRUPTED", outcome.reason, requeue=True, final_state=None):
                self.queue.give_back(key, alone=key in self._solo)
                if outcome.end == DAMAGED:
                    self._make_again(key, outcome.reason)
                elif outcome.end == WAITS and not self.queue.waits(key):
                    self._room.refused(outcome.reason)
            return
        verdict = judge(outcome, self._ledger.ends(key))
        if verdict.final_state is None:
            if self._ledger.end_attempt(key, attempt, verdict.end, verdict.reason, requeue=True, final_state=None):
                if verdict.alone:
                    self._solo.add(key)
                self.queue.give_back(key, alone=key in self._solo, last=True)
                self._tell(key, attempt, "PENDING", message.slot.node, reason=f"{verdict.end}: {verdict.reason}")
            return
        if outcome.record is not None:
            stored = self._ledger.commit(key, attempt, outcome.record)
            if key in self._cut and any(a["name"] == LOG for a in outcome.record.get("artifacts", [])):
                log_path(self._ledger.home, key, attempt).unlink(missing_ok=True)  # the whole log is in the store
        else:
            stored = self._ledger.end_attempt(key, attempt, verdict.end, verdict.reason, requeue=False, final_state=verdict.final_state)
        if stored:
            self._room.fine()
            message.slot.forget += {key, message.job.get("folder", key)}
            self._walls.append(outcome.wall_s)
            reason = verdict.reason or (outcome.record or {}).get("reason") or ""
            self._ended(key, attempt, verdict.final_state, reason, outcome.wall_s, message.slot.node)
            self._judge_first(verdict.final_state, reason)

    def _make_again(self, key: str, reason: str) -> None:
        """A file of the trial that this one starts from was altered: that one runs again first."""
        start = self.queue.rows[key].depends_on
        if start is not None:
            aside = self._ledger.set_aside(start, reason)
            self.queue.reopen(start)
            self._emit(Event("note", {"text": f"{self.queue.rows[start].spec_id} runs again: {reason.splitlines()[0]}; record in {aside}"}))

    def _judge_first(self, state: str, reason: str) -> None:
        """If the first trials all fail with one error, the rest would too. Who resumes a sweep that was paused for an error has been asked."""
        if len(self._first_ends) < _BREAKER:
            self._first_ends.append(_brief(state, reason))
            first = self._first_ends[0]
            alike = first is not None and len(set(self._first_ends)) == 1
            if len(self._first_ends) == _BREAKER and alike and first not in self._accepted and self.queue.n_open:
                self.tripped = first
                again = f"sparsefleet resume {self._sweep}"
                text = f"paused, {self.queue.n_open} trials wait: the first {_BREAKER} all ended with {first}"
                self._emit(Event("note", {"text": f"{text}; once that is mended: {again} --failed; to run the rest all the same: {again}"}))

    def _ended(self, key: str, attempt: int, state: str, reason: str, wall_s: float, node: str = "") -> None:
        self.queue.done(key, state)
        self._n_done += 1
        self._tell(key, attempt, state, node, reason=reason, wall_s=round(wall_s, 3))

    def _tell(self, key: str, attempt: int, state: str, node: str, **more: Any) -> None:
        row = self.queue.rows[key]
        data = {"key": key, "spec_id": row.spec_id, "ordinal": row.ordinal, "attempt": attempt, "state": state, "node": node, **more}
        self._emit(Event("trial", {**data, "counts": {state: n for state, n in self.queue.counts.items() if n}, "eta_s": self.eta_s()}))

    def _tell_fleet(self) -> None:
        now = time.monotonic()
        if now >= self._tell_fleet_at:
            self._tell_fleet_at = now + FLEET_EVERY_S
            waiting = reasons(self.queue, *self._pool.places(), self._settings.max_parallel if self._pool.full else None)
            self._emit(self._pool.event(self._sweep, waiting))

    def eta_s(self) -> float | None:
        """Seconds until the last trial ends at the pace up to now; None before the first has ended."""
        if not self._n_done:
            return None
        return round((time.monotonic() - self._begun) / self._n_done * self.queue.n_open, 1)

    # the end

    def _drain(self) -> None:
        """Let what runs come to its end for some seconds; what does not goes back to the queue, its checkpoint kept."""
        until = time.monotonic() + DRAIN_S
        while self._pool.n_busy and time.monotonic() < until and self._interrupts.n_signals < 2 and not self._interrupts.cancelled:
            heard = self._pool.hear(_WAIT_S)
            for message in heard:
                if message.kind == "ended" and message.slot.jobs and message.slot.jobs[0].started is None:
                    self._give_up(message.slot)  # before it starts the one behind
            self._take(heard)
        for slot in list(self._pool.slots):
            self._give_up(slot)

    def _give_up(self, slot: Slot) -> None:
        with self._ledger.batch():
            for assignment in slot.jobs:
                self._ledger.end_attempt(
                    assignment.key, assignment.job["attempt"], "INTERRUPTED", "the driver stopped", requeue=True, final_state=None
                )
                self.queue.mark(assignment.key, "PENDING")
        self._pool.kill(slot)


def _outcome(message: Message) -> Outcome:
    return Outcome(**{name: message.body[name] for name in ("end", "reason", "record", "wall_s", "peak_mib")})


def _brief(state: str, reason: str) -> str | None:
    """How a failed trial ended, in a line; None for any other."""
    return f"{state}: {(reason.strip().splitlines() or [''])[0]}" if state in FAILED else None
