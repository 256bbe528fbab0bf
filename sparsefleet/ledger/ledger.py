"""The ledger: what was asked, what was tried, what is committed. One SQLite file per home; the truth."""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparsefleet.crash_points import passing
from sparsefleet.errors import UserError
from sparsefleet.ledger import entering, integrity, outbox as mail, schema, sweeps, timings as times
from sparsefleet.ledger.clock import now
from sparsefleet.ledger.lock import is_held
from sparsefleet.ledger.packed import dump, pattern_of, record_kind, sha256
from sparsefleet.ledger.rows import ACTIVE, LIVE_SWEEP, TERMINAL, TIMED, OutboxItem, SweepRow, SweepTrial, TimingRow, TrialRow
from sparsefleet.ledger.store import ArtifactStore
from sparsefleet.ledger.transactions import Transactions
from sparsefleet.ledger.trials import Finished, Truth, alone, attempts, attempts_of_sweep, finished, read, seconds, test_figures
from sparsefleet.redact import redacted, redacted_json

_LISTED = 8
_FENCE = "key=? AND attempt=? AND state IN ('LEASED','RUNNING')"


def open_ledger(home: Path) -> Ledger:
    """The home's ledger for reading and writing; created if there is none."""
    return Ledger(home, schema.open_file(home, read_only=False))


def read_ledger(home: Path) -> Ledger:
    """The home's ledger for reading.

    Raises:
        UserError: there is none.
    """
    return Ledger(home, schema.open_file(home, read_only=True))


class Ledger(Transactions):
    """Every public method is one transaction unless it runs inside ``batch``."""

    def __init__(self, home: Path, db: sqlite3.Connection) -> None:
        super().__init__(home, db)
        self._begun: dict[tuple[str, int], float] = {}

    def __enter__(self) -> Ledger:
        return self

    # sweeps

    def create_sweep(
        self, sweep: str, name: str, digest: str, grid_text: str, settings: dict[str, Any], trials: Iterable[SweepTrial]
    ) -> None:
        """Enter a sweep and its trials; a trial whose key is committed is shared.

        Repeating it with the same keys runs nothing again: what is asked for beside them (parallelism, limits, the plugins' bundle) takes the
        place of what was, unless a driver is running them. Other keys (the code or the data changed, or another selection of the same grid)
        take the place of the former ones, whose records stay.

        Raises:
            UserError: the id is taken by a sweep with another digest.
            SweepLocked: the trials differ, and a driver is running them.
        """
        asked = list(trials)
        passing("enqueue-before")
        with self.batch():
            row = SweepRow(sweep, name, digest, grid_text, "RUNNING", "", None, settings, {})
            entering.enter(self._db, self._texts, self.home, row, asked)
        passing("enqueue-after")

    def sweep(self, sweep: str) -> SweepRow:
        """The sweep with this id, or the only one whose id begins so.

        Raises:
            UserError: there is none or more than one.
        """
        return sweeps.find(self._db, self.home, sweep)

    def sweeps(self) -> list[SweepRow]:
        """All sweeps, newest first."""
        return sweeps.all_sweeps(self._db, self.home)

    def set_sweep_state(self, sweep: str, state: str) -> None:
        """Set what the driver knows; ``ended`` follows from it."""
        with self.batch():
            self._db.execute("UPDATE sweeps SET state=?, ended=? WHERE sweep=?", (state, None if state in LIVE_SWEEP else now(), sweep))
            mail.enqueue(self._db, "sweep", sweep, None, {"state": state})
            passing("sweep-state-inside")

    # trials

    def trials(
        self, sweep: str, *, with_record: bool | Sequence[str] = True, with_attempts: bool = True, states: Sequence[str] = ()
    ) -> Iterator[TrialRow]:
        """The sweep's trials in the grid's order.

        Args:
            with_record: False leaves the records out; names of a record's keys read those alone, behind its digest as the whole is.
            states: only trials whose row says one of these; empty for all.
        """
        where = f" AND t.state IN ({','.join('?' * len(states))})" if states else ""
        past = attempts_of_sweep(self._db, sweep) if with_attempts else {}
        truth = Truth(self._db, self.home)
        return read(self._texts, f"s.sweep=?{where} ORDER BY s.ordinal", (sweep, *states), record=with_record, truth=truth, past=past)

    def trial(self, key_or_spec_id_prefix: str, *, sweep: str | None = None) -> TrialRow:
        """The trial whose key or spec_id begins so; of several keys of one spec_id (its code changed) the one that ran last, if a sweep shows it.

        Args:
            sweep: the one that shows it; None: the newest one that does. A trial that waits reads CANCELLED in a cancelled sweep.

        Raises:
            UserError: there is none, or several trials begin so.
        """
        prefix = key_or_spec_id_prefix
        asked = (  # as ranges, which the indices know; substr would look at every trial
            "SELECT key, spec_id FROM trials t WHERE (key >= ?1 AND key < ?2 OR spec_id >= ?1 AND spec_id < ?2)"
            " AND EXISTS (SELECT 1 FROM sweep_trials s WHERE s.key = t.key AND (?3 IS NULL OR s.sweep = ?3)) ORDER BY started DESC LIMIT 50"
        )
        is_id = prefix and prefix.isascii()  # SQLite takes no half of a surrogate pair
        found = self._db.execute(asked, (prefix, prefix + chr(sys.maxunicode), sweep)).fetchall() if is_id else []
        if not found:
            raise UserError(f"unknown trial {prefix!r}", fix="sparsefleet status SWEEP lists the trials")
        if len({row["spec_id"] for row in found}) > 1:
            raise UserError(f"several trials begin with {prefix!r}", fix=", ".join(sorted({row["spec_id"] for row in found})[:_LISTED]))
        where = "s.key=?1 AND (?2 IS NULL OR s.sweep=?2) ORDER BY (SELECT created FROM sweeps w WHERE w.sweep = s.sweep) DESC LIMIT 1"
        key = found[0]["key"]
        past = {key: attempts(self._db, key)}
        return next(read(self._texts, where, (key, sweep), record=True, truth=Truth(self._db, self.home), past=past))

    def trial_to_report(self, key: str, place: Mapping[str, Any]) -> TrialRow:
        """The trial of this key; one that no sweep shows any more as ``place`` of its outbox item says that it was shown.

        Raises:
            UserError: there is none.
        """
        if self._db.execute("SELECT 1 FROM sweep_trials WHERE key=?", (key,)).fetchone():
            return self.trial(key)
        row = alone(self._texts, key, place)
        if row is None:
            raise UserError(f"unknown trial {key!r}")
        return row

    def grids_of(self, key: str) -> list[str]:
        """The names of the sweeps that show this trial, or ran it once: where MLflow may have a run of it."""
        return sweeps.grids_of(self._db, key)

    def finished(self, spec_ids: Iterable[str]) -> Iterator[Finished]:
        """The trials of these specs that have ended, under whatever code they ran."""
        return finished(self._db, spec_ids)

    def seconds(self, sweep: str) -> Iterator[tuple[str, float]]:
        """(key, seconds) of the sweep's trials that have a result."""
        return seconds(self._db, sweep)

    def test_figures(self, keys: Iterable[str]) -> list[float]:
        """The test figures of those of the trials that succeeded."""
        return test_figures(self._texts, keys)

    def lease(self, key: str, sweep: str, node: str) -> int | None:
        """The new attempt's number, or None if the trial is terminal or another live sweep holds it."""
        with self.batch():
            row = self._db.execute("SELECT state, attempt, owner FROM trials WHERE key=?", (key,)).fetchone()
            if row is None:
                raise UserError(f"unknown trial {key!r}")
            if row["state"] in TERMINAL:
                return None
            if row["state"] in ACTIVE and (row["owner"] == sweep or not self._freed(key, row)):
                return None
            attempt: int = row["attempt"] + 1
            started = now()
            self._db.execute(
                "UPDATE trials SET state='LEASED', attempt=?, owner=?, node=?, reason=NULL, started=?, ended=NULL WHERE key=?",
                (attempt, sweep, node, started, key),
            )
            self._db.execute("INSERT INTO attempts (key, n, sweep, node, started) VALUES (?,?,?,?,?)", (key, attempt, sweep, node, started))
            passing("lease-inside")
        self._begun[key, attempt] = time.monotonic()
        return attempt

    def _freed(self, key: str, row: sqlite3.Row) -> bool:
        """Whether a trial that is under way is so no more: the driver that held it is gone."""
        if is_held(self.home, row["owner"]):
            return False
        self.end_attempt(key, row["attempt"], "INTERRUPTED", f"the driver of {row['owner']} is gone", requeue=True, final_state=None)
        return True

    def mark_running(self, key: str, attempt: int, node: str) -> bool:
        """The child of this attempt has started on ``node``; fenced."""
        with self.batch():
            done = self._db.execute(f"UPDATE trials SET state='RUNNING', node=?, started=? WHERE {_FENCE}", (node, now(), key, attempt))
            if done.rowcount:
                self._db.execute("UPDATE attempts SET node=? WHERE key=? AND n=?", (node, key, attempt))
                self._begun[key, attempt] = time.monotonic()
                passing("running-inside")
            return done.rowcount == 1

    def commit(self, key: str, attempt: int, record: dict[str, Any], outbox: bool = True) -> bool:
        """Store the attempt's record; False, and nothing stored, if the attempt is not the current one or was ended before.

        The record's ``attempts_log`` is written here: the ledger knows all attempts.
        """
        from sparsefleet.trial.record import WITHOUT_SECRETS  # pydantic, which a reader of the ledger does not need

        state = str(record["state"])
        if state not in TERMINAL:
            raise ValueError(f"a record's state is terminal, got {state!r}")
        passing("commit-before")
        with self.batch():
            if not self._end(key, attempt, state, record.get("reason"), requeue=False, final_state=state):
                return False
            past = attempts(self._db, key)
            log = [{"n": a["n"], "end": a["end"], "node": a["node"], "t_s": a["t_s"] or 0.0} for a in past]
            record = redacted_json(record, leave=WITHOUT_SECRETS)  # nodes have redacted what their environment knows; this is the driver's
            record |= {"attempt": attempt, "attempts_log": log}
            text = dump(record)
            body = self._texts.pack(text, record_kind(past[-1]["sweep"], record), lambda: pattern_of(record))
            stored = self._db.execute("INSERT INTO records (body) VALUES (?)", (body,)).lastrowid
            self._db.execute("UPDATE trials SET record=?, record_sha256=? WHERE key=?", (stored, sha256(text), key))
            passing("commit-inside")
            if outbox:
                self._report(key, attempt, state)
        return True

    def end_attempt(self, key: str, attempt: int, end: str, reason: str, *, requeue: bool, final_state: str | None) -> bool:
        """End an attempt that has no record: back to the queue, or to ``final_state``. False if it is not the current attempt."""
        if requeue == (final_state is not None):
            raise ValueError("an ended attempt is either requeued or final")
        with self.batch():
            if not self._end(key, attempt, end, reason, requeue=requeue, final_state=final_state):
                return False
            if final_state:
                self._report(key, attempt, final_state)
            passing("attempt-ended-inside")
        return True

    def _report(self, key: str, attempt: int, state: str) -> None:
        mail.enqueue_trial(self._db, key, attempt, state)

    def _end(self, key: str, attempt: int, end: str, reason: str | None, *, requeue: bool, final_state: str | None) -> bool:
        ended, reason = now(), redacted(reason) if reason else reason
        done = self._db.execute(
            f"UPDATE trials SET state=?, reason=?, ended=?, owner=NULL WHERE {_FENCE}",
            ("PENDING" if requeue else final_state, reason, ended, key, attempt),
        )
        if done.rowcount != 1:
            return False
        begun = self._begun.pop((key, attempt), None)
        t_s = None if begun is None else round(time.monotonic() - begun, 3)
        self._db.execute(
            'UPDATE attempts SET ended=?, "end"=?, reason=?, t_s=? WHERE key=? AND n=?', (ended, end, reason, t_s, key, attempt)
        )
        return True

    def refuse(self, key: str, state: str, reason: str) -> bool:
        """Give a waiting trial a terminal state without an attempt, e.g. INVALID when what it starts from failed; False if it does not wait."""
        with self.batch():
            row = self._db.execute("SELECT state, attempt, owner FROM trials WHERE key=?", (key,)).fetchone()
            if row is not None and row["state"] in ACTIVE:
                self._freed(key, row)
            done = self._db.execute(
                "UPDATE trials SET state=?, reason=?, ended=? WHERE key=? AND state='PENDING'", (state, redacted(reason), now(), key)
            )
            if done.rowcount:
                self._report(key, self._db.execute("SELECT attempt FROM trials WHERE key=?", (key,)).fetchone()[0], state)
            return done.rowcount == 1

    def recover(self, sweep: str) -> int:
        """End the attempts that a dead driver of this sweep left behind; only the holder of the sweep's lock may call it."""
        with self.batch():
            stale = self._db.execute("SELECT key, attempt FROM trials WHERE owner=? AND state IN ('LEASED','RUNNING')", (sweep,)).fetchall()
            for row in stale:
                self.end_attempt(row["key"], row["attempt"], "INTERRUPTED", "the driver ended", requeue=True, final_state=None)
                passing("recover-inside")
        return len(stale)

    def damaged(self, sweep: str, store: ArtifactStore | None = None) -> dict[str, str]:
        """Committed trials whose record does not match its digest, or whose files the store has lost: what is wrong, by key."""
        return integrity.damaged(self._db, self._texts, sweep, store)

    def set_aside(self, key: str, reason: str) -> Path | None:
        """Put a trial back into the queue whose record, or a file of it, is not what it was; the path of the record that was taken away."""
        with self.batch():
            return integrity.set_aside(self._db, self._texts, self.home, key, reason)

    def retry_failed(self, sweep: str) -> int:
        """Put the sweep's failed trials back into the queue with fresh budgets."""
        with self.batch():
            return integrity.retry_failed(self._db, sweep)

    def ends(self, key: str) -> list[str]:
        """How the attempts since the last ``retry_failed`` ended, oldest first."""
        rows = self._db.execute(
            'SELECT a."end" FROM attempts a JOIN trials t ON t.key = a.key WHERE a.key=? AND a.n > t.budget_from AND a."end" NOT NULL ORDER BY a.n',
            (key,),
        )
        return [row[0] for row in rows]

    # timings

    def timings(self, sweep: str, config_key: str | None = None, *, every: bool = False) -> list[TimingRow]:
        """The sweep's timings, one row per configuration, or the one of this configuration.

        Args:
            every: also those that stand for no trial of the sweep any more; they stand for some again if they are wanted again.

        Raises:
            IntegrityError: one is not what was entered; the message names its configuration.
        """
        return [row for row in times.of_sweep(self._db, sweep, config_key) if row.keys or every]

    def damaged_timings(self, sweep: str) -> dict[str, str]:
        """Timings of the sweep that do not match their digest: what is wrong, by configuration."""
        return times.damaged(self._db, sweep)

    def set_timing_aside(self, sweep: str, config_key: str) -> Path | None:
        """Take a timing away, so that ``resume`` measures it again; where what is left of it lies now."""
        with self.batch():
            return times.set_aside(self._db, self.home, sweep, config_key)

    def measure_seconds(self) -> float | None:
        """What measuring one configuration took, the median; None where nothing has been measured."""
        return times.seconds_each(self._db)

    def timing(self, config_key: str, states: Sequence[str] = ("SUCCEEDED",)) -> TimingRow | None:
        """The newest timing of this configuration, whichever sweep took it."""
        return times.of_config(self._db, config_key, states)

    def commit_timing(
        self,
        sweep: str,
        config_key: str,
        keys: Sequence[str],
        state: str,
        timings: Sequence[dict[str, Any]],
        samples: bytes | None = None,
        reason: str | None = None,
    ) -> None:
        """Store or replace one configuration's timings and their raw samples; ``state`` is one of ``TIMED``."""
        if state not in TIMED:
            raise ValueError(f"{state!r} is no end of a timing")
        with self.batch():
            ref = None if samples is None else times.store_samples(self._db, samples)
            times.enter(self._db, sweep, TimingRow(config_key, list(keys), state, list(timings), ref, redacted(reason or "") or None))
            passing("timing-inside")
        passing("timing-after")

    def share_timing(self, sweep: str, known: TimingRow, keys: Sequence[str]) -> None:
        """Enter a timing that another sweep took, or that now stands for other trials."""
        with self.batch():
            times.enter(self._db, sweep, replace(known, keys=list(keys)))

    def samples(self, ref: str) -> bytes:
        """Raw samples by their digest."""
        return times.load_samples(self._db, ref)

    # outbox

    def enqueue(self, kind: str, sweep: str, key: str | None, payload: dict[str, Any]) -> None:
        """Give the uploader something to do; an item of the same kind, sweep and key that still waits is replaced."""
        with self.batch():
            mail.enqueue(self._db, kind, sweep, key, payload)

    def outbox(self, limit: int = 100) -> list[OutboxItem]:
        """What waits to be uploaded, oldest first, failed ones last."""
        return mail.waiting(self._db, limit)

    def outbox_size(self, *, without: str = "") -> int:
        """How many items wait; ``without`` those of this kind."""
        return mail.size(self._db, without)

    def upload_again(self, sweep: str) -> int:
        """Everything of the sweep waits once more, for a tracking server that has lost it; how many items."""
        with self.batch():
            return mail.again(self._db, sweep)

    def mark_uploaded(self, id: int, run_id: str | None) -> None:
        """The server has it."""
        passing("uploaded-before")
        with self.batch():
            mail.mark_uploaded(self._db, id, run_id)

    def mark_failed(self, id: int, error: str) -> None:
        """The server did not take it; it is tried again after the others."""
        with self.batch():
            self._db.execute("UPDATE outbox SET attempts=attempts+1, error=? WHERE id=?", (redacted(error)[:2000], id))
