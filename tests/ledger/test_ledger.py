"""The ledger: states, fencing, sharing, what is true when a driver died."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from sparsefleet.errors import IntegrityError, SweepLocked, UserError
from sparsefleet.ledger import Ledger, SweepLock, SweepTrial, is_held, open_ledger, read_ledger, rows, schema


def trial(ordinal: int, key: str | None = None, **kwargs: object) -> SweepTrial:
    key = key or f"{ordinal:064x}"
    return SweepTrial(ordinal=ordinal, key=key, spec_id=key[-12:], spec={"seed": ordinal}, arm="dense", **kwargs)


def record(state: str = "SUCCEEDED", **kwargs: object) -> dict:
    return {"schema": "sf-record/1", "state": state, "reason": None, **kwargs}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    with open_ledger(tmp_path) as ledger:
        yield ledger


def create(ledger: Ledger, sweep: str = "a-1", n: int = 3, first: int = 0) -> list[str]:
    trials = [trial(i) for i in range(first, first + n)]
    ledger.create_sweep(sweep, sweep[0], f"digest of {sweep}", "name: a", {"measure": {}}, trials)
    return [t.key for t in trials]


def flip(ledger: Ledger, table: str, column: str = "body", where: str = "1", bit: int = 100) -> None:
    """Another process's ledger has one bit less in these rows, or one more."""
    with closing(sqlite3.connect(ledger.home / "ledger.db")) as db, db:
        for name, body in db.execute(f"SELECT rowid, {column} FROM {table} WHERE {where}").fetchall():
            at = bit % (8 * len(body))
            altered = body[: at // 8] + bytes([body[at // 8] ^ 1 << at % 8]) + body[at // 8 + 1 :]
            db.execute(f"UPDATE {table} SET {column}=? WHERE rowid=?", (altered, name))


def counts(ledger: Ledger, sweep: str) -> dict[str, int]:
    return {state: n for state, n in ledger.sweep(sweep).counts.items() if n and state not in ("total", "cached")}


def test_states_are_those_of_the_record() -> None:
    from sparsefleet.trial.record import FAILED, TERMINAL

    assert set(rows.TERMINAL) == {state.value for state in TERMINAL}
    assert set(rows.FAILED) == {state.value for state in FAILED}


def test_a_trial_from_pending_to_committed(ledger: Ledger) -> None:
    k0, k1, k2 = create(ledger)
    with SweepLock(ledger.home, "a-1"):
        assert ledger.lease(k0, "a-1", "node-1") == 1
        assert counts(ledger, "a-1") == {"PENDING": 2, "LEASED": 1}
        assert ledger.mark_running(k0, 1, "node-1")
        assert counts(ledger, "a-1") == {"PENDING": 2, "RUNNING": 1}
        assert ledger.commit(k0, 1, record(accuracy=0.5))
        assert ledger.lease(k0, "a-1", "node-1") is None
        row = ledger.trial(k0)
        assert (row.state, row.attempt, row.record["accuracy"], row.ordinal) == ("SUCCEEDED", 1, 0.5, 0)
        assert [(a["n"], a["end"], a["node"]) for a in row.record["attempts_log"]] == [(1, "SUCCEEDED", "node-1")]
        assert [t.key for t in ledger.trials("a-1")] == [k0, k1, k2]
        assert sum(counts(ledger, "a-1").values()) == ledger.sweep("a-1").counts["total"] == 3


def test_a_late_result_is_fenced(ledger: Ledger) -> None:
    (key, *_) = create(ledger)
    with SweepLock(ledger.home, "a-1"):
        first = ledger.lease(key, "a-1", "node-1")
        assert ledger.end_attempt(key, first, "LOST", "no sign of life", requeue=True, final_state=None)
        second = ledger.lease(key, "a-1", "node-2")
        assert second == 2
        assert not ledger.commit(key, first, record(accuracy=0.1))  # the zombie
        assert not ledger.end_attempt(key, first, "CRASHED", "zombie", requeue=False, final_state="CRASHED")
        assert not ledger.mark_running(key, first, "node-1")
        assert ledger.commit(key, second, record(accuracy=0.9))
        assert not ledger.commit(key, second, record(accuracy=0.2))  # the same result delivered twice
    row = ledger.trial(key)
    assert row.record["accuracy"] == 0.9
    assert [(a["n"], a["end"]) for a in row.attempts] == [(1, "LOST"), (2, "SUCCEEDED")]


def test_a_record_needs_a_terminal_state_and_finite_numbers(ledger: Ledger) -> None:
    (key, *_) = create(ledger)
    attempt = ledger.lease(key, "a-1", "n")
    with pytest.raises(ValueError, match="terminal"):
        ledger.commit(key, attempt, record("RUNNING"))
    with pytest.raises(ValueError):
        ledger.commit(key, attempt, record(accuracy=float("nan")))
    with SweepLock(ledger.home, "a-1"):
        assert counts(ledger, "a-1") == {"PENDING": 2, "LEASED": 1}  # the refused commits left nothing


def test_a_key_is_shared_and_leased_by_one_sweep(ledger: Ledger) -> None:
    (key,) = create(ledger, "a-1", 1)
    with SweepLock(ledger.home, "a-1"), SweepLock(ledger.home, "b-2"):
        assert ledger.lease(key, "a-1", "n") == 1
        create(ledger, "b-2", 2)  # the same trial 0, and a new one
        assert ledger.lease(key, "b-2", "n") is None  # a-1 lives and holds it
        assert counts(ledger, "b-2") == {"LEASED": 1, "PENDING": 1}
        ledger.commit(key, 1, record())
    create(ledger, "c-3", 1)
    assert ledger.sweep("b-2").counts["cached"] == 0
    assert ledger.sweep("c-3").counts == {"total": 1, "cached": 1, "SUCCEEDED": 1}
    sent = {(item.sweep, item.payload["shared"]) for item in ledger.outbox(100) if item.kind == "trial"}
    assert sent == {("a-1", False), ("b-2", True), ("c-3", True)}


def test_a_dead_drivers_lease_is_taken_over(ledger: Ledger) -> None:
    (key,) = create(ledger, "a-1", 1)
    create(ledger, "b-2", 1)
    assert ledger.lease(key, "a-1", "n") == 1  # and a-1's driver dies: its lock is free
    assert counts(ledger, "a-1") == {"PENDING": 1}
    assert ledger.sweep("a-1").state == "INTERRUPTED"
    with SweepLock(ledger.home, "b-2"):
        assert ledger.lease(key, "b-2", "n") == 2
    assert [a["end"] for a in ledger.trial(key).attempts] == ["INTERRUPTED", None]


def test_recover_requeues_what_an_earlier_driver_held(ledger: Ledger) -> None:
    k0, k1, _ = create(ledger)
    ledger.lease(k0, "a-1", "n")
    ledger.mark_running(k0, 1, "n")
    ledger.lease(k1, "a-1", "n")
    with SweepLock(ledger.home, "a-1"):
        assert ledger.lease(k0, "a-1", "n") is None  # its own, until recovered
        assert ledger.recover("a-1") == 2
        assert counts(ledger, "a-1") == {"PENDING": 3}
        assert not ledger.commit(k0, 1, record())
        assert ledger.ends(k0) == ["INTERRUPTED"]


def test_cancelling_one_sweep_leaves_shared_trials_alone(ledger: Ledger) -> None:
    create(ledger, "a-1", 2)
    create(ledger, "b-2", 2)
    ledger.set_sweep_state("a-1", "CANCELLED")
    assert counts(ledger, "a-1") == {"CANCELLED": 2}
    assert counts(ledger, "b-2") == {"PENDING": 2}
    assert {t.state for t in ledger.trials("a-1")} == {"CANCELLED"}
    ledger.set_sweep_state("a-1", "RUNNING")
    assert counts(ledger, "a-1") == {"PENDING": 2}


def test_failed_trials_can_be_put_back_with_fresh_budgets(ledger: Ledger) -> None:
    k0, k1, k2 = create(ledger)
    ledger.end_attempt(k0, ledger.lease(k0, "a-1", "n"), "CRASHED", "SIGSEGV", requeue=False, final_state="POISONED")
    ledger.commit(k1, ledger.lease(k1, "a-1", "n"), record("DIVERGED"))
    assert ledger.refuse(k2, "INVALID", "its twin failed")
    assert not ledger.refuse(k1, "INVALID", "no")
    assert ledger.ends(k0) == ["CRASHED"]
    assert ledger.retry_failed("a-1") == 2  # a diverged trial is a result
    assert ledger.ends(k0) == []
    assert ledger.lease(k0, "a-1", "n") == 2


def test_create_sweep_twice_changes_nothing_and_another_digest_is_refused(ledger: Ledger) -> None:
    create(ledger, "a-1", 2)
    ledger.commit(key := f"{0:064x}", ledger.lease(key, "a-1", "n"), record())
    create(ledger, "a-1", 2)
    assert ledger.sweep("a-1").counts == {"total": 2, "cached": 0, "SUCCEEDED": 1, "PENDING": 1}
    with pytest.raises(UserError, match="another digest"):
        ledger.create_sweep("a-1", "a", "other", "", {}, [])


def test_changed_keys_take_the_place_of_the_former_ones(ledger: Ledger) -> None:
    create(ledger, "a-1", 3)
    ledger.commit(key := f"{0:064x}", ledger.lease(key, "a-1", "n"), record())
    with SweepLock(ledger.home, "a-1"), pytest.raises(SweepLocked):
        create(ledger, "a-1", 2, first=2)
    create(ledger, "a-1", 2, first=2)
    assert [t.ordinal for t in ledger.trials("a-1")] == [2, 3]
    create(ledger, "a-1", 3)
    assert ledger.sweep("a-1").counts == {"total": 3, "cached": 1, "SUCCEEDED": 1, "PENDING": 2}


def test_names_are_found_by_prefix_or_listed(ledger: Ledger) -> None:
    create(ledger, "wide-12", 1)
    create(ledger, "wide-34", 1, first=5)
    assert ledger.sweep("wide-1").sweep == "wide-12"
    with pytest.raises(UserError, match="2 sweeps begin with 'wide'"):
        ledger.sweep("wide")
    with pytest.raises(UserError, match="wide-34"):
        ledger.sweep("narrow")
    with pytest.raises(UserError, match="several trials"):
        ledger.trial("0")
    for nobody in ("", "\ud800"):  # the half of a pair is what a byte that is no UTF-8 becomes on a command line
        with pytest.raises(UserError, match="unknown trial"):
            ledger.trial(nobody)
    assert ledger.trial("0" * 11 + "5").spec == {"seed": 5}


def test_nothing_at_all_names_no_sweep(ledger: Ledger) -> None:
    """Not even the only one: ``sparsefleet cancel "$UNSET"`` must not cancel it."""
    create(ledger, "wide-12", 1)
    with pytest.raises(UserError, match="unknown sweep ''"):
        ledger.sweep("")


def test_a_batch_is_all_or_nothing(ledger: Ledger) -> None:
    k0, k1, _ = create(ledger)
    with SweepLock(ledger.home, "a-1"):
        with pytest.raises(ZeroDivisionError), ledger.batch():
            assert ledger.lease(k0, "a-1", "n") / 0
        assert counts(ledger, "a-1") == {"PENDING": 3}
        with ledger.batch():
            assert [ledger.lease(k, "a-1", "n") for k in (k0, k1)] == [1, 1]
        assert counts(ledger, "a-1") == {"PENDING": 1, "LEASED": 2}


def test_an_altered_record_is_noticed(ledger: Ledger) -> None:
    (key, *_) = create(ledger)
    ledger.commit(key, ledger.lease(key, "a-1", "n"), record(accuracy=0.5))
    flip(ledger, "records")
    with pytest.raises(IntegrityError, match="digest"):
        ledger.trial(key)
    assert next(ledger.trials("a-1", with_record=False)).state == "SUCCEEDED"


def test_timings_and_samples(ledger: Ledger) -> None:
    k0, k1, _ = create(ledger)
    ledger.commit_timing("a-1", "cfg", [k0, k1], "SUCCEEDED", [{"op": "forward"}], samples=b"1 2 3")
    (row,) = ledger.timings("a-1")
    assert (row.keys, row.timings, row.state) == ([k0, k1], [{"op": "forward"}], "SUCCEEDED")
    assert ledger.samples(row.samples_ref) == b"1 2 3"
    assert ledger.timing("cfg") == row
    ledger.commit_timing("a-1", "cfg", [k0], "INCORRECT", [], reason="incorrect")
    with pytest.raises(ValueError, match="'WAITS' is no end"):  # the store was away: nothing is known of the configuration
        ledger.commit_timing("a-1", "cfg", [k0], "WAITS", [])
    assert ledger.timing("cfg") is None
    assert [r.reason for r in ledger.timings("a-1")] == ["incorrect"]


def test_the_outbox_keeps_the_last_word_and_puts_failures_last(ledger: Ledger) -> None:
    create(ledger, "a-1", 1)
    (sweep,) = ledger.outbox(10)
    ledger.enqueue("table", "a-1", None, {"text": "old"})
    ledger.enqueue("table", "a-1", None, {"text": "new"})
    assert [(i.kind, i.payload) for i in ledger.outbox(10)] == [("sweep", {"state": "RUNNING"}), ("table", {"text": "new"})]
    ledger.mark_failed(sweep.id, "server away")
    assert [(i.kind, i.attempts) for i in ledger.outbox(10)] == [("table", 0), ("sweep", 1)]
    ledger.mark_uploaded(sweep.id, "run-7")
    assert ledger.outbox_size() == 1
    assert ledger.upload_again("a-1") == 2
    assert [(i.kind, i.attempts) for i in ledger.outbox(10)] == [("sweep", 0), ("table", 0)]


def test_reading_needs_a_ledger_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no ledger"):
        read_ledger(tmp_path)
    open_ledger(tmp_path).close()
    with read_ledger(tmp_path) as ledger, pytest.raises(sqlite3.OperationalError):
        ledger.set_sweep_state("a", "DONE")
    assert (tmp_path / "ledger.db").stat().st_mode & 0o077 == 0


def test_what_is_no_file_is_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").symlink_to("/dev/zero")
    for opened in (read_ledger, open_ledger):
        with pytest.raises(IntegrityError, match=r"ledger\.db is not a regular file"):
            opened(tmp_path)


def test_a_reader_waits_for_a_ledger_that_is_being_made(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").touch()
    with pytest.raises(UserError, match="there is no ledger"):  # nobody makes it
        read_ledger(tmp_path)
    maker = threading.Timer(0.3, lambda: open_ledger(tmp_path).close())
    maker.start()
    with read_ledger(tmp_path) as ledger:
        assert ledger.sweeps() == []
    maker.join()


def test_a_ledger_of_another_format_is_refused_by_name(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as db:
        db.execute(f"PRAGMA user_version={schema.VERSION - 1}")
    for opened in (read_ledger, open_ledger):
        with pytest.raises(UserError, match=f"has ledger format {schema.VERSION - 1}, this sparsefleet reads {schema.VERSION}") as caught:
            opened(tmp_path)
        assert "set SPARSEFLEET_HOME to another folder" in str(caught.value.fix)


def test_another_process_does_not_take_the_log_away(ledger: Ledger) -> None:
    """Opening the ledger twice in one process once dropped the first one's locks, and it went on reading an unlinked log."""
    (key,) = create(ledger, "a-1", 1)
    open_ledger(ledger.home).close()
    script = (
        "import sys; from pathlib import Path; from sparsefleet.ledger import open_ledger\n"
        "ledger = open_ledger(Path(sys.argv[1])); ledger.lease(sys.argv[2], 'a-1', 'n'); ledger.close()"
    )
    subprocess.run([sys.executable, "-c", script, str(ledger.home), key], check=True)
    assert ledger.trial(key).attempt == 1


def test_a_file_that_is_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(IntegrityError):
        open_ledger(tmp_path)


def test_one_driver_per_sweep(tmp_path: Path) -> None:
    assert not is_held(tmp_path, "a-1")
    with SweepLock(tmp_path, "a-1"):
        assert is_held(tmp_path, "a-1")
        with pytest.raises(SweepLocked, match="sparsefleet watch a-1") as caught:
            SweepLock(tmp_path, "a-1").acquire()
        assert caught.value.exit_code == 75
    assert not is_held(tmp_path, "a-1")


def test_parts_of_records_are_read_behind_the_whole_records_digest(ledger: Ledger) -> None:
    k0, k1, _ = create(ledger)
    for key, loss in ((k0, 0.25), (k1, 0.1)):
        attempt = ledger.lease(key, "a-1", "n")
        assert ledger.commit(key, attempt, record(accuracy={"test": 0.5, "loss": loss}, curves={"loss": [1.0] * 1000}))
    found = list(ledger.trials("a-1", with_record=("accuracy", "state", "absent")))
    assert [t.record for t in found] == [
        {"accuracy": {"test": 0.5, "loss": 0.25}, "state": "SUCCEEDED", "absent": None},
        {"accuracy": {"test": 0.5, "loss": 0.1}, "state": "SUCCEEDED", "absent": None},
        None,
    ]
    assert [t.record for t in ledger.trials("a-1", with_record=("state",))][:2] == [{"state": "SUCCEEDED"}] * 2
    assert [t.key for t in ledger.trials("a-1", states=("PENDING",))] == [f"{2:064x}"]
    flip(ledger, "records", where="id=(SELECT record FROM trials WHERE key LIKE '%1')")
    with pytest.raises(IntegrityError, match=k1[:12]):
        list(ledger.trials("a-1", with_record=("accuracy",)))


def test_attempts_come_with_their_trials_in_one_query(ledger: Ledger) -> None:
    keys = create(ledger)
    for key in keys[:2]:
        for end in ("LOST", "CRASHED"):
            ledger.end_attempt(key, ledger.lease(key, "a-1", "n"), end, "gone", requeue=True, final_state=None)
    asked: list[str] = []
    ledger._db.set_trace_callback(asked.append)
    found = [[a["end"] for a in t.attempts] for t in ledger.trials("a-1", with_record=False)]
    ledger._db.set_trace_callback(None)
    assert found == [["LOST", "CRASHED"], ["LOST", "CRASHED"], []]
    assert sum("attempts" in sql for sql in asked) == 1
    assert [t.attempts for t in ledger.trials("a-1", with_attempts=False)] == [[], [], []]


def test_a_trial_is_found_by_its_beginning_without_looking_at_every_trial(ledger: Ledger) -> None:
    keys = create(ledger, n=40)
    plans = [
        row[3]
        for row in ledger._db.execute(
            "EXPLAIN QUERY PLAN SELECT key FROM trials WHERE key >= ?1 AND key < ?2 OR spec_id >= ?1 AND spec_id < ?2", ("a", "b")
        )
    ]
    assert any("trials_spec" in step for step in plans)
    assert not any(step.startswith("SCAN trials") for step in plans)
    assert ledger.trial(keys[7]).ordinal == 7
    with pytest.raises(UserError, match="several"):
        ledger.trial("0000")


def test_finished_trials_are_found_by_spec_under_whatever_code_they_ran(ledger: Ledger) -> None:
    keys = create(ledger)
    other = "f" * 64
    ledger.create_sweep("b-1", "b", "other", "", {}, [SweepTrial(0, other, keys[0][-12:], {"seed": 0}, "dense")])
    for key, sweep in ((keys[0], "a-1"), (other, "b-1")):
        ledger.commit(key, ledger.lease(key, sweep, "n"), record())
    found = list(ledger.finished([key[-12:] for key in keys]))
    assert {one.key for one in found} == {keys[0], other}
    assert all(one.state == "SUCCEEDED" and one.seconds is not None for one in found)


def test_the_same_trials_asked_for_again_follow_the_new_request_unless_they_are_being_run(ledger: Ledger) -> None:
    key = create(ledger, n=1)[0]
    ledger.commit(key, ledger.lease(key, "a-1", "n"), record())

    def again(bundle: str, limit: float) -> tuple[str, float]:
        asked = [trial(0, limits={"timeout_s": limit})]
        ledger.create_sweep("a-1", "a", "digest of a-1", "name: a  # edited", {"bundle": bundle}, asked)
        row = next(ledger.trials("a-1"))
        assert (row.state, len(row.attempts)) == ("SUCCEEDED", 1)
        return ledger.sweep("a-1").settings["bundle"], row.limits.get("timeout_s", 0)

    assert again("first", 5) == ("first", 5)
    with SweepLock(ledger.home, "a-1"):
        assert again("second", 9) == ("first", 5)
    assert again("second", 9) == ("second", 9)


def test_an_altered_record_is_set_aside_and_its_trial_runs_again(ledger: Ledger) -> None:
    (key, *_) = create(ledger)
    ledger.commit(key, ledger.lease(key, "a-1", "n"), record())
    ledger._db.execute("UPDATE records SET body=?", (b'{"\xff',))
    (found,) = ledger.damaged("a-1").items()
    path = ledger.set_aside(*found)
    assert path.read_bytes() == b'{"\xff'
    assert ledger._db.execute("SELECT count(*) FROM records").fetchone()[0] == 0
    with SweepLock(ledger.home, "a-1"):
        assert counts(ledger, "a-1") == {"PENDING": 3}
        assert ledger.commit(key, ledger.lease(key, "a-1", "n"), record())
    assert [a["end"] for a in ledger.trial(key).attempts] == ["DAMAGED", "SUCCEEDED"]
    assert ledger.damaged("a-1") == {}


@pytest.mark.parametrize("way", ["set aside", "tried again"])
def test_a_trial_whose_record_number_was_altered_takes_no_other_trials_record_away(ledger: Ledger, way: str) -> None:
    k0, k1, _ = create(ledger)
    ledger.commit(k0, ledger.lease(k0, "a-1", "n"), record("CRASHED", reason="of the first"))
    ledger.commit(k1, ledger.lease(k1, "a-1", "n"), record(reason="of the second"))
    ledger._db.execute("UPDATE trials SET record=(SELECT record FROM trials WHERE key=?) WHERE key=?", (k1, k0))
    (found,) = ledger.damaged("a-1").items()
    assert found[0] == k0
    if way == "set aside":
        assert b"second" not in ledger.set_aside(*found).read_bytes()
    else:
        assert ledger.retry_failed("a-1") == 1
    assert ledger.damaged("a-1") == {}
    assert ledger.trial(k1).record["reason"] == "of the second"
    assert ledger.commit(k0, ledger.lease(k0, "a-1", "n"), record())


def test_a_timing_that_stands_for_no_trial_any_more_is_not_among_the_sweeps(ledger: Ledger) -> None:
    """Another machine's would become the table's, and one that the fleet lost would keep the sweep from ending."""
    keys = create(ledger)
    ledger.commit_timing("a-1", "lost", keys[:1], "INFRA_FAILED", [], reason="lost 3 times")
    ledger.commit_timing("a-1", "both", keys, "SUCCEEDED", [{"fingerprint": "fp:here"}])
    for item in ledger.outbox():
        ledger.mark_uploaded(item.id, None)
    create(ledger, n=2, first=1)
    assert [(row.config_key, row.keys) for row in ledger.timings("a-1")] == [("both", keys[1:])]
    assert {row.config_key for row in ledger.timings("a-1", every=True)} == {"lost", "both"}
    assert [row.state for row in ledger.timings("a-1", "lost", every=True)] == ["INFRA_FAILED"]
    assert {item.key for item in ledger.outbox() if item.kind == "timing"} == {"lost", "both"}  # MLflow has to know, too


def test_a_flipped_bit_anywhere_in_a_timing_is_noticed_and_it_is_taken_away(ledger: Ledger) -> None:
    keys = create(ledger)
    ledger.commit_timing("a-1", "config", keys, "SUCCEEDED", [{"speedup": 1.5}], b"raw", "a reason")
    ledger.commit_timing("a-1", "other", keys, "SUCCEEDED", [{"speedup": 2.5}])
    (kept,) = ledger._db.execute(
        "SELECT sweep, config_key, keys, state, timings, samples_ref, reason, created, sha256 FROM timings LIMIT 1"
    )
    for column in ("config_key", "keys", "state", "timings", "samples_ref", "reason", "created", "sha256"):
        for bit in range(8 * len(kept[column])):
            body = kept[column].encode()
            altered = body[: bit // 8] + bytes([body[bit // 8] ^ 1 << bit % 8]) + body[bit // 8 + 1 :]
            ledger._db.execute(f"UPDATE timings SET {column}=CAST(? AS TEXT) WHERE config_key != 'other'", (altered,))
            (name,) = ledger.damaged_timings("a-1")
            with pytest.raises(IntegrityError, match="does not match its digest"):
                ledger.timings("a-1")
            assert ledger.timing("config") is None
            assert ledger.measure_seconds() is None
            ledger._db.execute(f"UPDATE timings SET {column}=? WHERE config_key != 'other'", (kept[column],))
    assert [row.timings for row in ledger.timings("a-1")] == [[{"speedup": 1.5}], [{"speedup": 2.5}]]
    ledger.set_sweep_state("a-1", "DONE")
    ledger._db.execute("UPDATE timings SET timings=replace(timings, '1.5', '9.5') WHERE config_key='config'")
    (name,) = ledger.damaged_timings("a-1")
    path = ledger.set_timing_aside("a-1", name)
    assert path is not None
    assert "9.5" in path.read_text()
    assert [row.config_key for row in ledger.timings("a-1")] == ["other"]
    assert ledger.damaged_timings("a-1") == {}
    assert ledger.sweep("a-1").state == "INTERRUPTED"
    assert ledger.set_timing_aside("a-1", name) is None


_OPENING = """
import sys, time
from pathlib import Path
from sparsefleet.ledger import open_ledger
folder, n = Path(sys.argv[1]), int(sys.argv[2])
for number in range(n):
    while not (folder / f"go-{number}").exists():
        pass
    open_ledger(folder / f"home-{number}").close()
    print(number, flush=True)
"""


def test_several_processes_make_one_ledger_at_once(tmp_path: Path) -> None:
    """Of six, one in forty found it locked: SQLite waits for nobody when a new file's mode is changed."""
    n = 30
    processes = [
        subprocess.Popen([sys.executable, "-c", _OPENING, str(tmp_path), str(n)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    try:
        for number in range(n):
            (tmp_path / f"go-{number}").touch()
            for process in processes:
                assert process.stdout is not None
                assert process.stdout.readline() == f"{number}\n", process.communicate()[1]
        assert [process.wait(30) for process in processes] == [0] * len(processes)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
