"""RF-22: what a ledger says of a sweep's history, held against the contract; and the checker itself, held against planted faults.

It reads the file with SQL of its own, so that a fault in how the product reads cannot hide one in how it writes. Wherever chaos ran,
``violations`` says afterwards what of the contract does not hold.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chaos.stored import Stored
from benchmarks.chaos.sweep import Sweep, processes_below
from benchmarks.figures import Figure, Run
from sparsefleet.errors import SparsefleetError
from sparsefleet.ledger import ArtifactStore, is_held, read_ledger

BUDGETS = {"LOST": 20, "CRASHED": 2, "KILLED": 5, "OOM": 2}
"""Attempts that may end so before the trial does; every other end but INTERRUPTED and DAMAGED is final."""
FREE = ("INTERRUPTED", "DAMAGED")
"""Ends that cost nothing: a driver stopped, or the record was found altered and set aside."""
RESULTS = ("SUCCEEDED", "DIVERGED")
FAILED = ("INCORRECT", "PLUGIN_ERROR", "CRASHED", "POISONED", "TIMEOUT", "OOM", "INVALID", "INFRA_FAILED")
FINAL = (*RESULTS, *FAILED, "CANCELLED")
ACTIVE = ("LEASED", "RUNNING")
_AFTER = {"POISONED": ("CRASHED", "KILLED"), "INFRA_FAILED": ("LOST",)}
"""The last attempt's end, where it is not called as the trial's."""
_WITHOUT_ATTEMPT = ("INVALID", "CANCELLED")


def violations(home: Path, sweep: str, *, wall_clock: bool = True) -> list[str]:
    """What of the contract does not hold for a sweep, one line each; nothing if all does. Works while a driver runs, too.

    Args:
        wall_clock: whether times may be compared; not where the wall clock was moved.
    """
    db = sqlite3.connect(f"{(home / 'ledger.db').absolute().as_uri()}?mode=ro", uri=True, timeout=60)
    db.row_factory = sqlite3.Row
    try:
        db.execute("BEGIN")  # one moment of the ledger, whoever writes to it meanwhile
        return [*_of_file(db), *_of_sweep(home, db, sweep), *_of_trials(home, db, sweep, wall_clock), *_of_timings(db, sweep)]
    except sqlite3.DatabaseError as error:
        return [f"the ledger cannot be read: {error}"]
    finally:
        db.close()


def _of_file(db: sqlite3.Connection) -> Iterator[str]:
    for (text,) in db.execute("PRAGMA integrity_check").fetchall():
        if text != "ok":
            yield f"the file is damaged: {text}"
    for row in db.execute("PRAGMA foreign_key_check").fetchall():
        yield f"a row of {row[0]} refers to nothing"


def _of_sweep(home: Path, db: sqlite3.Connection, sweep: str) -> Iterator[str]:
    row = db.execute("SELECT * FROM sweeps WHERE sweep=?", (sweep,)).fetchone()
    if row is None:
        yield f"there is no sweep {sweep}"
        return
    states = Counter(
        state for (state,) in db.execute("SELECT t.state FROM sweep_trials s JOIN trials t ON t.key = s.key WHERE s.sweep=?", (sweep,))
    )
    total = db.execute("SELECT count(*), max(ordinal) FROM sweep_trials WHERE sweep=?", (sweep,)).fetchone()
    if states.total() != total[0] or total[0] != (total[1] if total[1] is not None else -1) + 1:
        yield f"{total[0]} trials, the last of which is number {total[1]}, and {states.total()} states"
    held = is_held(home, sweep)
    n_open = sum(n for state, n in states.items() if state not in FINAL)
    n_failed = sum(states[state] for state in FAILED)
    if row["state"] == "DONE" and (n_open or n_failed):
        yield f"the sweep is DONE with {n_open} open and {n_failed} failed trials"
    if (row["ended"] is None) != (row["state"] in ("RUNNING", "MEASURING")):
        yield f"the sweep is {row['state']} and ended at {row['ended']}"
    if not held:
        with read_ledger(home) as ledger:  # what people are told
            told = ledger.sweep(sweep)
        counts = {state: n for state, n in told.counts.items() if state not in ("total", "cached") and n}
        if sum(counts.values()) != total[0] or told.counts["total"] != total[0]:
            yield f"status tells {counts} of {total[0]} trials"
        if told.state in ("RUNNING", "MEASURING") or any(state in counts for state in ACTIVE):
            yield f"status tells {told.state}, {counts}, and nobody drives the sweep"


def _of_trials(home: Path, db: sqlite3.Connection, sweep: str, wall_clock: bool) -> Iterator[str]:
    store = ArtifactStore(os.environ.get("SPARSEFLEET_ARTIFACTS") or (home / "artifacts").as_uri())
    seen: dict[str, str | None] = {}
    rows = db.execute(
        "SELECT t.*, r.body FROM sweep_trials s JOIN trials t ON t.key = s.key LEFT JOIN records r ON r.id = t.record"
        " WHERE s.sweep=? ORDER BY s.ordinal",
        (sweep,),
    ).fetchall()
    stored = Stored(db)
    for row in rows:
        attempts = db.execute("SELECT * FROM attempts WHERE key=? ORDER BY n", (row["key"],)).fetchall()
        found = [*_of_attempts(row, attempts), *_of_state(home, db, row, attempts), *_of_record(stored, row, attempts)]
        found += [*_of_times(attempts)] if wall_clock else []
        found += [*_of_outbox(db, sweep, row), *_of_artifacts(store, stored.text(row["body"]), seen)]
        yield from (f"{row['spec_id']}: {text}" for text in found)


def _of_attempts(row: sqlite3.Row, attempts: list[sqlite3.Row]) -> Iterator[str]:
    """Numbered without gaps, ended but for the last, within the budgets."""
    numbers = [a["n"] for a in attempts]
    if numbers != list(range(1, row["attempt"] + 1)):
        yield f"attempts {numbers} of {row['attempt']}"
    ends = [a["end"] for a in attempts]
    for a in attempts[:-1]:
        if a["end"] is None:
            yield f"attempt {a['n']} was never ended, and attempt {a['n'] + 1} began: two leases at once"
    strange = {end for end in ends if end is not None} - {*FINAL, *FREE, *BUDGETS}
    if strange:
        yield f"attempts ended {sorted(strange)}"
    committed = [a["n"] for a in attempts if a["end"] in RESULTS]
    if len(committed) > 1:
        yield f"attempts {committed} were all committed"
    since = [a for a in attempts if a["n"] > row["budget_from"]]
    for a in since[:-1]:
        if a["end"] in FINAL and a["end"] not in BUDGETS:
            yield f"attempt {a['n']} ended {a['end']}, and another began"
    for end, n in Counter(a["end"] for a in since).items():
        if end in BUDGETS and n > BUDGETS[end]:
            yield f"{n} attempts ended {end}, of {BUDGETS[end]}"


def _of_state(home: Path, db: sqlite3.Connection, row: sqlite3.Row, attempts: list[sqlite3.Row]) -> Iterator[str]:
    """The trial's state follows from its last attempt, and nothing runs without a driver."""
    state, last = row["state"], attempts[-1]["end"] if attempts else None
    is_open = bool(attempts) and last is None
    if state in ACTIVE:
        if not is_open or row["owner"] is None:
            yield f"{state} for {row['owner']}, and its last attempt ended {last}"
        else:
            sweep = db.execute("SELECT state FROM sweeps WHERE sweep=?", (row["owner"],)).fetchone()
            if not is_held(home, row["owner"]) and sweep is not None and sweep["state"] in ("DONE", "FAILED"):
                yield f"{state}, and {row['owner']}, which held it, is {sweep['state']}: nobody will end it"
        return
    if is_open or row["owner"] is not None:
        yield f"{state}, and attempt {row['attempt']} of {row['owner']} is open"
    current = bool(attempts) and attempts[-1]["n"] > row["budget_from"]
    if state not in ("PENDING", *FINAL):
        yield f"{state} is no state of a trial"
    elif state == "PENDING" and current and last not in (*BUDGETS, *FREE):
        yield f"PENDING after an attempt that ended {last}"
    elif state in FINAL and state not in _WITHOUT_ATTEMPT and (not current or last not in _AFTER.get(state, (state,))):
        yield f"{state}, and its last attempt ended {last}"
    full = {**_AFTER, "OOM": ("OOM",)}.get(state, ())
    spent = Counter(a["end"] for a in attempts if a["n"] > row["budget_from"])
    if full and not any(spent[end] == BUDGETS[end] for end in full):
        yield f"{state} before {' or '.join(f'{BUDGETS[end]} attempts ended {end}' for end in full)}"


def _of_record(stored: Stored, row: sqlite3.Row, attempts: list[sqlite3.Row]) -> Iterator[str]:
    """One record, of this trial and its last attempt, behind its digest."""
    if row["record"] is None:
        if row["state"] in RESULTS:
            yield f"{row['state']} without a record"
        return
    if row["state"] not in FINAL:
        yield f"{row['state']} with a record"
    text = stored.text(row["body"])
    if text is None or hashlib.sha256(text.encode()).hexdigest() != row["record_sha256"]:
        yield "the record is not what was committed"
        return
    record = json.loads(text)
    told = (record["trial_key"], record["spec_id"], record["state"], record["attempt"])
    if told != (row["key"], row["spec_id"], row["state"], row["attempt"]):
        yield f"the record is of {told}"
    if record["spec"] != json.loads(stored.text(row["spec"]) or "null"):
        yield "the record is of another spec"
    log = [(a["n"], a["end"]) for a in record["attempts_log"]]
    if log != [(a["n"], a["end"]) for a in attempts]:
        yield f"the record tells the attempts {log}"


def _of_times(attempts: list[sqlite3.Row]) -> Iterator[str]:
    ended = ""
    for a in attempts:
        if a["started"] < ended:
            yield f"attempt {a['n']} began at {a['started']}, before the one before it ended at {ended}"
        if a["ended"] is not None and a["ended"] < a["started"]:
            yield f"attempt {a['n']} ended before it began"
        if a["t_s"] is not None and a["t_s"] < 0:
            yield f"attempt {a['n']} took {a['t_s']} s"
        ended = a["ended"] or ended


def _of_outbox(db: sqlite3.Connection, sweep: str, row: sqlite3.Row) -> Iterator[str]:
    """Every end was handed to the uploader, and what waits waits once."""
    items = db.execute("SELECT uploaded, payload FROM outbox WHERE kind='trial' AND sweep=? AND key=?", (sweep, row["key"])).fetchall()
    if row["state"] in FINAL and not any(json.loads(item["payload"]).get("state") == row["state"] for item in items):
        yield f"{row['state']}, and the outbox never heard of it"
    if sum(item["uploaded"] is None for item in items) > 1:
        yield "it waits in the outbox twice"


def _of_artifacts(store: ArtifactStore, record: str | None, seen: dict[str, str | None]) -> Iterator[str]:
    """Every file that the record names is there, as it was."""
    artifacts: list[dict[str, Any]] = json.loads(record).get("artifacts", []) if record else []
    for ref in artifacts:
        if ref["sha256"] not in seen:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    body = store.get(ref["sha256"], Path(folder) / "file").read_bytes()
                    right = hashlib.sha256(body).hexdigest() == ref["sha256"] and len(body) == ref["bytes"]
                    seen[ref["sha256"]] = None if right else "is not what was stored"
                except SparsefleetError as error:
                    seen[ref["sha256"]] = f"cannot be read: {error.what}"
        if seen[ref["sha256"]]:
            yield f"its artifact {ref['name']} {seen[ref['sha256']]}"


def _of_timings(db: sqlite3.Connection, sweep: str) -> Iterator[str]:
    keys = {key for (key,) in db.execute("SELECT key FROM sweep_trials WHERE sweep=?", (sweep,))}
    for row in db.execute("SELECT * FROM timings WHERE sweep=?", (sweep,)).fetchall():
        name = f"timing {row['config_key'][:12]}"
        if not set(json.loads(row["keys"])) <= keys:
            yield f"{name} stands for trials of another sweep"
        if row["samples_ref"] is not None:
            body = db.execute("SELECT body FROM samples WHERE ref=?", (row["samples_ref"],)).fetchone()
            if body is None or hashlib.sha256(bytes(body["body"])).hexdigest() != row["samples_ref"]:
                yield f"{name} has no samples, or other ones"


# The checker against planted faults

_FIRST = "(SELECT s.key FROM sweep_trials s JOIN trials t ON t.key = s.key WHERE t.attempt > 0 ORDER BY s.ordinal LIMIT 1)"
"""A trial that ran."""
_LATER = (  # every attempt of it gets the next number
    f"UPDATE attempts SET n=-n-1 WHERE key={_FIRST}",
    f"UPDATE attempts SET n=-n WHERE key={_FIRST}",
    f"UPDATE trials SET attempt=attempt+1 WHERE key={_FIRST}",
)
_BEFORE = "INSERT INTO attempts SELECT key, 1, sweep, node, started, {ended}, {end}, NULL, 0 FROM attempts WHERE n=2 AND key=" + _FIRST
PLANTED: dict[str, tuple[str, tuple[str, ...]]] = {
    "committed twice": ("were all committed", (*_LATER, _BEFORE.format(ended="started", end="'SUCCEEDED'"))),
    "an attempt is missing": (": attempts [2", _LATER),
    "two leases at once": ("before the one before it ended", (*_LATER, _BEFORE.format(ended="'9'", end="'LOST'"))),
    "a lease that was never ended": ("was never ended, and attempt", (*_LATER, _BEFORE.format(ended="NULL", end="NULL"))),
    "a budget is exceeded": (
        "3 attempts ended CRASHED, of 2",
        (
            f"UPDATE trials SET state='PENDING', record=NULL, record_sha256=NULL, attempt=3 WHERE key={_FIRST}",
            f"DELETE FROM attempts WHERE key={_FIRST}",
            *(
                f"INSERT INTO attempts SELECT key, {n}, 's', 'n', '2026-01-0{n}', '2026-01-0{n}', 'CRASHED', '', 1 FROM trials WHERE key={_FIRST}"
                for n in (1, 2, 3)
            ),
        ),
    ),
    "a record is lost": ("SUCCEEDED without a record", (f"UPDATE trials SET record=NULL, record_sha256=NULL WHERE key={_FIRST}",)),
    "a record is altered": ("the record is not what was committed", (f"UPDATE trials SET record_sha256='{'0' * 64}' WHERE key={_FIRST}",)),
    "a record of another trial": (
        "the record is of (",
        (
            "UPDATE trials SET (record, record_sha256) = (SELECT record, record_sha256 FROM trials t"
            f" WHERE t.key != {_FIRST} AND t.record NOT NULL LIMIT 1) WHERE key={_FIRST}",
        ),
    ),
    "running without a driver": (
        "nobody will end it",
        (
            f"UPDATE trials SET state='RUNNING', owner=(SELECT sweep FROM sweeps LIMIT 1), record=NULL, record_sha256=NULL WHERE key={_FIRST}",
            f'UPDATE attempts SET "end"=NULL, ended=NULL WHERE key={_FIRST} AND n=(SELECT attempt FROM trials WHERE key={_FIRST})',
        ),
    ),
    "done with an open trial": (
        "the sweep is DONE with 1 open",
        (f"UPDATE trials SET state='PENDING', record=NULL, record_sha256=NULL WHERE key={_FIRST}",),
    ),
    "an end that is none": ("attempts ended ['FINE']", (f"UPDATE attempts SET \"end\"='FINE' WHERE key={_FIRST}",)),
    "the outbox forgot a trial": ("the outbox never heard of it", (f"DELETE FROM outbox WHERE key={_FIRST}",)),
    "a trial vanished from the sweep": (" trials, the last of which is number ", ("DELETE FROM sweep_trials WHERE ordinal=0",)),
}
"""Faults that a driver or a ledger could have: what must be said of each, and the fault as SQL on a copy of a good ledger."""
CONTROL = "nothing: a copy as it is"
_FILES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "an artifact is altered": ("does not match its digest", lambda path: path.write_bytes(b"x" * path.stat().st_size)),
    "an artifact is gone": ("cannot be read from", Path.unlink),
}


def planted(home: Path, sweep: str) -> dict[str, list[str]]:
    """What ``violations`` says of copies of a good home, each with one fault."""
    found = {}
    with _copied(home) as copy:
        found[CONTROL] = violations(copy, sweep)
    for name, (_, statements) in PLANTED.items():
        with _copied(home) as copy:
            db = sqlite3.connect(copy / "ledger.db")
            for statement in statements:
                db.execute(statement)
            if statements[: len(_LATER)] == _LATER:
                _tell_record(db)
            db.commit()
            db.close()
            found[name] = violations(copy, sweep)
    for name, (_, damage) in _FILES.items():
        with _copied(home) as copy:
            damage(next(path for path in sorted((copy / "artifacts").rglob("*")) if path.is_file()))
            found[name] = violations(copy, sweep)
    return found


def _tell_record(db: sqlite3.Connection) -> None:
    """Makes the record agree with the attempts, so that these alone are wrong."""
    db.row_factory = sqlite3.Row
    trial = db.execute(f"SELECT t.*, r.body FROM trials t JOIN records r ON r.id = t.record WHERE t.key = {_FIRST}").fetchone()
    record = json.loads(Stored(db).text(trial["body"]) or "null")
    attempts = db.execute('SELECT n, node, started, ended, "end", reason, t_s FROM attempts WHERE key=? ORDER BY n', (trial["key"],))
    told = json.dumps({**record, "attempt": trial["attempt"], "attempts_log": [dict(row) for row in attempts]}).encode()
    made = zlib.compressobj(wbits=-15)
    body = bytes(3) + made.compress(told) + made.flush()
    row = db.execute("INSERT INTO records (body) VALUES (?)", (body + zlib.crc32(body).to_bytes(4, "big"),)).lastrowid
    db.execute(f"UPDATE trials SET record=?, record_sha256=? WHERE key={_FIRST}", (row, hashlib.sha256(told).hexdigest()))


@contextmanager
def _copied(home: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sparsefleet-history-") as folder:
        copy = Path(folder) / "home"
        copy.mkdir(mode=0o700)
        with closing(sqlite3.connect(home / "ledger.db")) as source, closing(sqlite3.connect(copy / "ledger.db")) as target:
            source.backup(target)
        shutil.copytree(home / "artifacts", copy / "artifacts")
        yield copy


def figures(asked: Run) -> list[Figure]:
    """What the checker finds in a sweep whose driver was killed twice, and in copies of it with one fault each."""
    n_seeds = asked.pick(8, 3)
    with tempfile.TemporaryDirectory(prefix="sparsefleet-history-") as folder:
        home = Path(folder)
        sweep = Sweep(home, n_seeds)
        good: list[str] = []
        n_killed = 0
        for n_done in (1, n_seeds):
            driver = sweep.driver()
            sweep.wait_for(n_done, driver)
            below = processes_below(driver.pid)
            driver.kill()
            n_killed += driver.wait() == -signal.SIGKILL  # it may have ended before
            for process in below:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            good += violations(home, sweep.id)
        asked.say("killed twice")
        driver = sweep.driver()
        driver.wait(240)
        good += violations(home, sweep.id)
        ended = sweep.row()
        found = planted(home, sweep.id)
    good += found.pop(CONTROL)
    rules = {name: rule for name, (rule, _) in (*PLANTED.items(), *_FILES.items())}
    missed = [name for name, said in found.items() if not any(rules[name] in line for line in said)]
    asked.keep({"good": good, "planted": found, "counts": ended.counts, "state": ended.state})
    quick = asked.note()
    return [
        Figure("drivers killed", "drivers", n_killed, target=2, note=quick),
        Figure("trials of the good sweep", "trials", ended.counts.get("SUCCEEDED", 0), target=2 * n_seeds, note=quick),
        Figure(
            "violations found where there are none", "violations", len(good), target=0, at_least=False, note="; ".join(good[:3]) or quick
        ),
        Figure("planted faults found", "faults", len(found) - len(missed), target=len(found), note=", ".join(missed) or quick),
    ]
