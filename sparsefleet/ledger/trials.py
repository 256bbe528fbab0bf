"""Reading trials: rows of the tables into TrialRow, with the states that are true now."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsefleet.errors import IntegrityError
from sparsefleet.ledger.lock import is_held
from sparsefleet.ledger.packed import Altered, Texts
from sparsefleet.ledger.rows import ACTIVE, TERMINAL, TrialRow

_COLUMNS = """s.sweep, s.ordinal, s.key, s.arm, s.twin_key, s.rival_key, s.depends_on, s.resources, s.limits, s.request,
    t.spec_id, t.spec, t.state, t.attempt, t.owner, t.node, t.reason, t.started, t.ended"""

_AT_ONCE = 500
_ATTEMPT = 'a.n, a.sweep, a.node, a.started, a.ended, a."end", a.reason, a.t_s'


def true_state(state: str, owner: str | None, *, cancelled: bool, alive: Callable[[str], bool]) -> str:
    """The state, given that drivers die and sweeps are cancelled without touching rows that other sweeps share."""
    if state in ACTIVE and not (owner and alive(owner)):
        state = "PENDING"
    return "CANCELLED" if state == "PENDING" and cancelled else state


class Truth:
    """Which drivers live and which sweeps are cancelled, looked up once each."""

    def __init__(self, db: sqlite3.Connection, home: Path) -> None:
        self._home = home
        self._held: dict[str, bool] = {}
        self._cancelled = {row["sweep"] for row in db.execute("SELECT sweep FROM sweeps WHERE state='CANCELLED'")}

    def alive(self, sweep: str) -> bool:
        """True if a driver holds the sweep."""
        if sweep not in self._held:
            self._held[sweep] = is_held(self._home, sweep)
        return self._held[sweep]

    def state(self, sweep: str, state: str, owner: str | None) -> str:
        """What is true of a trial as ``sweep`` sees it."""
        return true_state(state, owner, cancelled=sweep in self._cancelled, alive=self.alive)


def read(
    texts: Texts,
    where: str,
    values: Sequence[Any],
    *,
    record: bool | Sequence[str],
    truth: Truth,
    past: Mapping[str, list[dict[str, Any]]],
) -> Iterator[TrialRow]:
    """Rows of ``sweep_trials s`` joined with ``trials t``. Equal parts of their JSON are one object: they are read, never changed.

    Args:
        record: whether the records are read, or which of their keys; SQLite then takes those out, several times faster than Python parses the whole.
        past: attempts by trial key.

    Raises:
        IntegrityError: a text is not what was stored.
    """
    names = () if isinstance(record, bool) else tuple(record)
    paths = ", ".join(f"'$.{name}'" for name in (*names, "schema"))  # of one path alone the answer would be no array
    told = f"json_extract(record_text(t.key, r.body, t.record_sha256), {paths})" if names else "r.body" if record else "NULL"
    records = "LEFT JOIN records r ON r.id = t.record" if record else ""
    sql = f"SELECT {_COLUMNS}, t.record_sha256, {told} AS told FROM sweep_trials s JOIN trials t ON t.key = s.key {records} WHERE {where}"
    parsed = _Parsed(texts)
    found = texts.db.execute(sql, values)
    columns = [column[0] for column in found.description]
    for one in found:
        row = dict(zip(columns, one, strict=True))  # a sqlite3.Row searches its columns for every name that it is asked for
        sweep, owner, state, digest, told = (row.pop(name) for name in ("sweep", "owner", "state", "record_sha256", "told"))
        key = row["key"]
        row.update({name: parsed.shared(key, row[name]) for name in ("resources", "limits", "request")})
        row["spec"] = parsed.spec(key, row["spec"])
        yield TrialRow(
            **row,
            state=truth.state(sweep, state, owner),
            record=_record(texts, key, told, digest, names) if record and digest else None,
            attempts=past.get(key, []),
        )


def alone(texts: Texts, key: str, place: Mapping[str, Any]) -> TrialRow | None:
    """The trial of this key without a sweep; None if there is none.

    Args:
        place: how a sweep showed it, where that is known: ``arm``, ``twin_key``, ``rival_key``, ``request``.

    Raises:
        IntegrityError: its spec or its record is not what was stored.
    """
    found = texts.db.execute("SELECT t.*, r.body AS told FROM trials t LEFT JOIN records r ON r.id = t.record WHERE t.key=?", (key,))
    row = found.fetchone()
    if row is None:
        return None
    shown: dict[str, Any] = {"arm": "", "twin_key": None, "rival_key": None, "request": {}}
    return TrialRow(
        ordinal=0,
        **{name: row[name] for name in ("key", "spec_id", "state", "attempt", "node", "reason", "started", "ended")},
        **{name: place.get(name, default) for name, default in shown.items()},
        spec=_Parsed(texts).spec(key, row["spec"]),
        record=_record(texts, key, row["told"], row["record_sha256"], ()) if row["record_sha256"] else None,
        attempts=attempts(texts.db, key),
    )


def _record(texts: Texts, key: str, told: Any, digest: str, names: Sequence[str]) -> dict[str, Any]:
    """The record behind its digest; with ``names`` these of its keys."""
    if names:
        return dict(zip(names, json.loads(texts.told(key, told)), strict=False))
    record: dict[str, Any] = json.loads(texts.record(key, told, digest))
    return record


class _Parsed:
    """JSON texts as values, each parsed once. Trials that differ in their seed only share everything else: a driver holds thousands of them."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._shared: dict[int, Any] = {}
        self._heads: dict[bytes, Any] = {}

    def shared(self, key: str, number: int) -> Any:
        """The value of a shared text."""
        if number not in self._shared:
            try:
                self._shared[number] = json.loads(self._texts.text(number))
            except Altered as error:
                raise _asked(key, error) from error
        return self._shared[number]

    def spec(self, key: str, body: bytes) -> dict[str, Any]:
        """A spec: what stands before its seed is parsed once for all seeds."""
        try:
            text = self._texts.unpack(body)
        except Altered as error:
            raise _asked(key, error) from error
        head, _, tail = text.rpartition(b',"seed":')
        try:
            if head not in self._heads:
                self._heads[head] = json.loads(head + b"}")
            return {**self._heads[head], **json.loads(b'{"seed":' + tail)}
        except ValueError:  # the seed is not among the last of its keys
            return dict(json.loads(text))


def _asked(key: str, error: Altered) -> IntegrityError:
    return IntegrityError(
        f"what was asked for as trial {key[:12]} cannot be read any more",
        cause=str(error),
        fix="sparsefleet submit grid GRID enters it anew; finished trials stay",
    )


def attempts_of_sweep(db: sqlite3.Connection, sweep: str) -> dict[str, list[dict[str, Any]]]:
    """All attempts of the sweep's trials by key, oldest first, in one query."""
    found: dict[str, list[dict[str, Any]]] = {}
    sql = f"SELECT a.key, {_ATTEMPT} FROM sweep_trials s JOIN attempts a ON a.key = s.key WHERE s.sweep=? ORDER BY a.key, a.n"
    for row in db.execute(sql, (sweep,)):
        one = dict(row)
        found.setdefault(one.pop("key"), []).append(one)
    return found


def attempts(db: sqlite3.Connection, key: str) -> list[dict[str, Any]]:
    """All attempts of a trial, oldest first."""
    return [dict(row) for row in db.execute(f"SELECT {_ATTEMPT} FROM attempts a WHERE a.key=? ORDER BY a.n", (key,))]


@dataclass(frozen=True)
class Finished:
    """A trial that has ended: its identity, how, and the seconds of the attempt that did."""

    key: str
    spec_id: str
    state: str
    seconds: float | None


def finished(db: sqlite3.Connection, spec_ids: Iterable[str]) -> Iterator[Finished]:
    """The trials of these specs that have ended."""
    asked = list(spec_ids)
    for begin in range(0, len(asked), _AT_ONCE):
        some = asked[begin : begin + _AT_ONCE]
        sql = (
            "SELECT t.key, t.spec_id, t.state, a.t_s FROM trials t LEFT JOIN attempts a ON a.key = t.key AND a.n = t.attempt"
            f" WHERE t.spec_id IN ({','.join('?' * len(some))}) AND t.state IN ({','.join('?' * len(TERMINAL))})"
        )
        for row in db.execute(sql, (*some, *TERMINAL)):
            yield Finished(*row)


def seconds(db: sqlite3.Connection, sweep: str) -> Iterator[tuple[str, float]]:
    """(key, seconds of the attempt that ended it) of the sweep's trials that have a result."""
    sql = (
        "SELECT t.key, a.t_s FROM sweep_trials s JOIN trials t ON t.key = s.key JOIN attempts a ON a.key = t.key AND a.n = t.attempt"
        " WHERE s.sweep=? AND t.state IN ('SUCCEEDED','DIVERGED') AND a.t_s NOT NULL"
    )
    for row in db.execute(sql, (sweep,)):
        yield row["key"], row["t_s"]


def test_figures(texts: Texts, keys: Iterable[str]) -> list[float]:
    """The test figures of those trials that succeeded, for a line of progress."""
    asked, found = list(keys), []
    for begin in range(0, len(asked), _AT_ONCE):
        some = asked[begin : begin + _AT_ONCE]
        sql = (
            "SELECT t.key, json_extract(record_text(t.key, r.body, t.record_sha256), '$.accuracy.test', '$.schema') AS told"
            " FROM trials t JOIN records r ON r.id = t.record"
            f" WHERE t.state='SUCCEEDED' AND t.key IN ({','.join('?' * len(some))})"
        )
        figures = [json.loads(texts.told(row["key"], row["told"]))[0] for row in texts.db.execute(sql, some)]
        found += [figure for figure in figures if figure is not None]
    return found
