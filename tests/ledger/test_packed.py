"""Packed texts: small, the same when they come back, and never another text than was stored."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from sparsefleet.errors import IntegrityError
from sparsefleet.ledger import Ledger, SweepTrial, open_ledger, packed
from sparsefleet.ledger.packed import Altered, Texts

SPEC = {"schema": "sf-spec/1", "model": {"name": "mlp", "params": {"hidden": [64], "norm": "none"}}, "density": 0.1, "start": None}
RECORD = {
    "schema": "sf-record/1",
    "state": "SUCCEEDED",
    "reason": None,
    "code": {"model/mlp": "5b3d"},
    "spec": SPEC,
    "plugins": ["x" * 500],
}
REQUEST = {"code": {"model/mlp": "5b3d"}, "threads": 1}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    with open_ledger(tmp_path) as ledger:
        yield ledger


def keys_of(ledger: Ledger, n: int = 4) -> list[str]:
    """A sweep of as many trials, all of them committed."""
    enter(ledger, n)
    keys = [f"{i:064x}" for i in range(n)]
    for i, key in enumerate(keys):
        assert ledger.commit(key, ledger.lease(key, "a-1", "n"), {**RECORD, "spec": {**SPEC, "seed": i}, "value": i})
    return keys


def enter(ledger: Ledger, n: int = 4) -> None:
    trials = [SweepTrial(i, f"{i:064x}", f"{i:012x}", {**SPEC, "seed": i}, "sparse", request=REQUEST) for i in range(n)]
    ledger.create_sweep("a-1", "a", "digest", "name: a", {}, trials)


def entered_and_broken(ledger: Ledger) -> None:
    enter(ledger)
    raise ZeroDivisionError


def flip(ledger: Ledger, table: str, columns: tuple[str, ...], where: str = "1") -> None:
    """One bit in the middle of these columns, as another process would find it."""
    ledger._texts.forget()
    for column in columns:
        for row in ledger._db.execute(f"SELECT * FROM {table} WHERE {where}").fetchall():
            body = bytearray(row[column])
            body[len(body) // 2] ^= 4
            ledger._db.execute(f"UPDATE {table} SET {column}=? WHERE {row.keys()[0]}=?", (bytes(body), row[0]))


def test_every_flipped_bit_and_every_cut_of_a_packed_text_is_noticed() -> None:
    db = sqlite3.connect(":memory:")
    db.row_factory = sqlite3.Row
    db.execute("CREATE TABLE texts (id INTEGER PRIMARY KEY, sha256 TEXT UNIQUE, body BLOB, copy BLOB)")
    db.execute("CREATE TABLE dictionaries (kind TEXT PRIMARY KEY, text INTEGER)")
    texts = Texts(db)
    first, other = (json.dumps({**RECORD, "seed": seed}) for seed in (0, 1))
    texts.pack(first, "kind")
    body = texts.pack(other, "kind")
    assert texts.unpack(body).decode() == other
    assert len(body) < 60 < len(other) / 5
    for bit in range(8 * len(body)):
        altered = body[: bit // 8] + bytes([body[bit // 8] ^ 1 << bit % 8]) + body[bit // 8 + 1 :]
        with pytest.raises(Altered):
            texts.unpack(altered)
    for length in range(len(body)):
        with pytest.raises(Altered):
            texts.unpack(body[:length])


def test_what_is_alike_is_stored_once_and_comes_back_the_same(ledger: Ledger) -> None:
    keys = keys_of(ledger)
    with open_ledger(ledger.home) as other:
        rows = list(other.trials("a-1"))
    assert [row.key for row in rows] == keys
    assert [(row.spec, row.request) for row in rows] == [({**SPEC, "seed": i}, REQUEST) for i in range(4)]
    assert [row.record["value"] for row in rows] == [0, 1, 2, 3]
    lengths = [row[0] for row in ledger._db.execute("SELECT length(body) FROM records")]
    assert max(lengths) < 150 < len(json.dumps(RECORD)) / 4
    assert ledger._db.execute("SELECT count(*) FROM dictionaries").fetchone()[0] == 2
    assert ledger._db.execute("SELECT count(*) FROM texts").fetchone()[0] == 4  # the dictionaries, the request, and {} twice over


def test_a_dictionary_holds_no_long_lists_of_figures() -> None:
    told = json.loads(packed.pattern_of({"steps": [1, 2, 3, 4, 5, 6], "curve": {"values": [0.5] * 100}, "layers": [{"shape": [1, 2]}]}))
    assert told == {"steps": [1, 2, 3, 4, 5, 6], "curve": {"values": [0.5] * 4}, "layers": [{"shape": [1, 2]}]}


def test_a_damaged_dictionary_is_read_from_its_copy(ledger: Ledger) -> None:
    keys_of(ledger)
    for column in ("body", "copy"):
        flip(ledger, "texts", (column,))
        assert [row.record["value"] for row in ledger.trials("a-1")] == [0, 1, 2, 3]
        assert ledger.damaged("a-1") == {}
        enter(ledger)  # asked for again, what is shared is put right
        with ledger.batch():
            for row in ledger._db.execute("SELECT id FROM texts").fetchall():
                ledger._texts.number(ledger._texts.text(row["id"]).decode())
    ledger._texts.forget()
    ledger._db.execute("UPDATE texts SET sha256=substr(sha256, 2) || 'f'")
    assert [row.record["value"] for row in ledger.trials("a-1")] == [0, 1, 2, 3]


def test_without_its_dictionary_a_record_is_set_aside_and_the_next_one_has_a_new_dictionary(ledger: Ledger) -> None:
    keys = keys_of(ledger)
    flip(ledger, "texts", ("body", "copy"), "id=(SELECT text FROM dictionaries WHERE kind LIKE 'record %')")
    assert list(ledger.damaged("a-1")) == keys
    with pytest.raises(IntegrityError, match=keys[0][:12]):
        list(ledger.trials("a-1", with_record=("value",)))
    assert [row.state for row in ledger.trials("a-1", with_record=False)] == ["SUCCEEDED"] * 4
    for key, reason in ledger.damaged("a-1").items():
        ledger.set_aside(key, reason)
        ledger.commit(key, ledger.lease(key, "a-1", "n"), {**RECORD, "value": 7})
    assert ledger.damaged("a-1") == {}
    assert [row.record["value"] for row in ledger.trials("a-1")] == [7] * 4


def test_an_altered_spec_is_told_of_and_entered_again_by_submitting(ledger: Ledger) -> None:
    keys = keys_of(ledger)
    flip(ledger, "trials", ("spec",), f"key='{keys[2]}'")
    flip(ledger, "texts", ("body", "copy"), "id=(SELECT request FROM sweep_trials LIMIT 1)")
    with pytest.raises(IntegrityError, match="asked for as trial 000000000000 cannot be read"):
        list(ledger.trials("a-1"))
    enter(ledger)
    assert [(row.spec["seed"], row.request) for row in ledger.trials("a-1")] == [(i, REQUEST) for i in range(4)]


def test_what_was_rolled_back_is_not_taken_for_stored(ledger: Ledger) -> None:
    with pytest.raises(ZeroDivisionError), ledger.batch():
        entered_and_broken(ledger)
    keys_of(ledger)
    with open_ledger(ledger.home) as other:
        assert [row.record["value"] for row in other.trials("a-1")] == [0, 1, 2, 3]
