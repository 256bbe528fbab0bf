"""RF-15: bits are flipped and files cut in what the ledger and the store keep. Each is noticed before it is used, and what it was of is made again."""

from __future__ import annotations

import random
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.chaos.crash_points import committed
from benchmarks.chaos.history import violations
from benchmarks.chaos.sweep import Sweep
from benchmarks.figures import Figure, Run
from sparsefleet.errors import IntegrityError
from sparsefleet.ledger import ArtifactStore, SweepTrial, TrialRow, open_ledger, read_ledger
from sparsefleet.trial.checkpoint import FILE, SIDE, load_checkpoint, save_checkpoint
from sparsefleet.trial.files import MANIFEST, MASKS, MODEL

N_FLIPS, N_CUTS = 200, 50
_LIMIT_S = 400.0
_METHOD = "{rewirer: set, layer: csr}"
_MEASURE = "measure: {level: screen, batch_sizes: [32], ops: [forward]}"
KINDS = ("record", "timing", "spec", "text", MODEL, MASKS, MANIFEST, FILE, SIDE)


def figures(asked: Run) -> list[Figure]:
    """How many damages are noticed, and whether damaged trials end as they did before."""
    n_flips, n_cuts, rng = asked.pick(N_FLIPS, 24), asked.pick(N_CUTS, 12), random.Random(0)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="sparsefleet-corruption-") as folder:
        home = Path(folder) / "home"
        home.mkdir()
        sweep = Sweep(home, 3, epochs=1, methods=_METHOD, measure=_MEASURE)
        if code := sweep.driver().wait(_LIMIT_S):
            raise RuntimeError(f"the sweep ended with {code}: {sweep.log[-2000:]}")
        before = committed(home)
        for n in range(n_flips + n_cuts):
            damage = _flip if n < n_flips else _cut
            results.append(_one(sweep, KINDS[n % len(KINDS)], damage, rng, Path(folder) / "scratch"))
        asked.say(f"{len(results)} damages done")
        again = _all_at_once(sweep, rng)
        again["same"] = committed(home) == before
        wrong = violations(home, sweep.id)
    asked.keep({"damages": results, "again": again, "violations": wrong, "before": before})
    quick = asked.note()
    missed = [f"{r['kind']}: {r['error']}" for r in results if not r["noticed"]]
    return [
        Figure("damages", "damages", len(results), target=N_FLIPS + N_CUTS, note=quick),
        Figure("damages noticed", "damages", len(results) - len(missed), target=len(results), note="; ".join(missed[:3]) or quick),
        Figure("damaged files still in place", "damages", sum(not r["aside"] for r in results), target=0, at_least=False, note=quick),
        Figure("readers that crashed", "damages", sum(bool(r["error"]) for r in results), target=0, at_least=False, note=quick),
        Figure(
            "damaged trials that ran again and ended as before",
            "sweeps",
            float(again["same"] and again["timed"] and not wrong),
            target=1,
            note=again["note"],
        ),
    ]


def _flip(body: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(body))
    return body[:place] + bytes([body[place] ^ 1 << rng.randrange(8)]) + body[place + 1 :]


def _cut(body: bytes, rng: random.Random) -> bytes:
    return body[: rng.randrange(len(body))]


def _one(sweep: Sweep, kind: str, damage: Callable[[bytes, random.Random], bytes], rng: random.Random, scratch: Path) -> dict[str, Any]:
    """One damage, what a reader says to it, and whether what was damaged is out of the way. Everything is as before afterwards."""
    if kind == "record":
        return _damaged_record(sweep, damage, rng)
    if kind == "timing":
        return _damaged_timing(sweep, damage, rng)
    if kind in ("spec", "text"):
        return _damaged_asked(sweep, kind, damage, rng)
    if kind in (FILE, SIDE):
        return _damaged_checkpoint(kind, damage, rng, scratch)
    return _damaged_artifact(sweep, kind, damage, rng, scratch)


def _damaged_record(sweep: Sweep, damage: Callable[[bytes, random.Random], bytes], rng: random.Random) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": "record", "noticed": False, "aside": False, "error": ""}
    key = rng.choice([row.key for row in sweep.rows()])
    with closing(sqlite3.connect(sweep.home / "ledger.db")) as db:
        kept = db.execute("SELECT * FROM trials WHERE key=?", (key,)).fetchone()
        number, body = db.execute("SELECT id, body FROM records WHERE id=(SELECT record FROM trials WHERE key=?)", (key,)).fetchone()
        ends = db.execute("SELECT * FROM attempts WHERE key=?", (key,)).fetchall()
        with db:
            db.execute("UPDATE records SET body=? WHERE id=?", (damage(body, rng), number))
        try:
            with open_ledger(sweep.home) as ledger:
                try:
                    list(ledger.trials(sweep.id))
                except IntegrityError:
                    found["noticed"] = True
                told = ledger.damaged(sweep.id)
                found["noticed"] &= list(told) == [key]
                aside = ledger.set_aside(key, told.get(key, ""))
                row = ledger.trial(key)
                found["aside"] = aside is not None and aside.is_file() and row.record is None and row.state == "PENDING"
        except Exception as error:  # noqa: BLE001  any other is the fault that is looked for
            found["error"] = f"{type(error).__name__}: {error}"
        with db:
            db.execute("INSERT OR REPLACE INTO records VALUES (?,?)", (number, body))
            db.execute(f"INSERT OR REPLACE INTO trials VALUES ({','.join('?' * len(kept))})", kept)
            db.executemany(f"INSERT OR REPLACE INTO attempts VALUES ({','.join('?' * len(ends[0]))})", ends)
            db.execute("UPDATE sweeps SET state='DONE'")
    return found


def _damaged_timing(sweep: Sweep, damage: Callable[[bytes, random.Random], bytes], rng: random.Random) -> dict[str, Any]:
    """Of all that the ledger says of one: the digest is of the whole row."""
    found: dict[str, Any] = {"kind": "timing", "noticed": False, "aside": False, "error": ""}
    column = rng.choice(("keys", "state", "timings", "timings", "timings", "samples_ref", "created", "sha256"))
    with closing(sqlite3.connect(sweep.home / "ledger.db")) as db:
        kept = rng.choice(db.execute("SELECT * FROM timings").fetchall())
        place = "sweep=? AND config_key=?"
        (body,) = db.execute(f"SELECT CAST({column} AS BLOB) FROM timings WHERE {place}", kept[:2]).fetchone()
        with db:
            db.execute(f"UPDATE timings SET {column}=CAST(? AS TEXT) WHERE {place}", (damage(body or b"-", rng), *kept[:2]))
        try:
            with open_ledger(sweep.home) as ledger:
                try:
                    ledger.timings(sweep.id)
                except IntegrityError:
                    found["noticed"] = list(ledger.damaged_timings(sweep.id)) == [kept[1]] and ledger.timing(kept[1]) is None
                aside = ledger.set_timing_aside(sweep.id, kept[1])
                left = [row.config_key for row in ledger.timings(sweep.id)]
                found["aside"] = aside is not None and aside.is_file() and kept[1] not in left
        except Exception as error:  # noqa: BLE001
            found["error"] = f"{type(error).__name__}: {error}"
        with db:
            db.execute(f"INSERT OR REPLACE INTO timings VALUES ({','.join('?' * len(kept))})", kept)
            db.execute("UPDATE sweeps SET state='DONE'")
    return found


def _damaged_asked(sweep: Sweep, kind: str, damage: Callable[[bytes, random.Random], bytes], rng: random.Random) -> dict[str, Any]:
    """A spec, which is refused until the grid is submitted again; or one copy of what trials share, which the other copy stands in for."""
    found: dict[str, Any] = {"kind": kind, "noticed": False, "aside": False, "error": ""}
    before = sweep.rows()
    table, name, column = ("trials", "key", "spec") if kind == "spec" else ("texts", "id", rng.choice(("body", "copy")))
    with closing(sqlite3.connect(sweep.home / "ledger.db")) as db:
        place, body = rng.choice(db.execute(f"SELECT {name}, {column} FROM {table}").fetchall())
        with db:
            db.execute(f"UPDATE {table} SET {column}=? WHERE {name}=?", (damage(body, rng), place))
        try:
            try:
                found["noticed"] = sweep.rows() == before and kind == "text"
            except IntegrityError as error:
                found["noticed"] = kind == "spec" and place[:12] in error.what
            _submit_again(sweep, before)
            found["aside"] = sweep.rows() == before
        except Exception as error:  # noqa: BLE001
            found["error"] = f"{type(error).__name__}: {error}"
        with db:
            db.execute(f"UPDATE {table} SET {column}=? WHERE {name}=?", (body, place))
    return found


def _submit_again(sweep: Sweep, rows: list[TrialRow]) -> None:
    """What ``submit grid`` does with a grid that is known."""
    trials = [SweepTrial(**{name: getattr(row, name) for name in SweepTrial.__dataclass_fields__}) for row in rows]
    with open_ledger(sweep.home) as ledger:
        known = ledger.sweep(sweep.id)
        ledger.create_sweep(sweep.id, known.name, known.digest, known.grid_text, known.settings, trials)


def _damaged_checkpoint(kind: str, damage: Callable[[bytes, random.Random], bytes], rng: random.Random, scratch: Path) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"kind": kind, "noticed": False, "aside": False, "error": ""}
    scratch.mkdir(exist_ok=True)
    save_checkpoint(
        scratch, {"net/w": torch.randn(64, 64), "sites/w": torch.arange(100)}, {"trial_key": "k", "step": 12, "log": {"losses": [0.5] * 9}}
    )
    (scratch / kind).write_bytes(damage((scratch / kind).read_bytes(), rng))
    try:
        checkpoint, warning = load_checkpoint(scratch, "k")
        found["noticed"] = checkpoint is None and bool(warning)
        found["aside"] = not (scratch / kind).exists() and (scratch / f"{kind}.damaged").exists()
    except Exception as error:  # noqa: BLE001
        found["error"] = f"{type(error).__name__}: {error}"
    shutil.rmtree(scratch)
    return found


def _damaged_artifact(
    sweep: Sweep, name: str, damage: Callable[[bytes, random.Random], bytes], rng: random.Random, scratch: Path
) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": name, "noticed": False, "aside": False, "error": ""}
    refs = [ref["sha256"] for row in sweep.rows() for ref in (row.record or {})["artifacts"] if ref["name"] == name]
    sha = rng.choice(refs)
    path = sweep.home / "artifacts" / sha[:2] / sha
    body = path.read_bytes()
    path.write_bytes(damage(body, rng))
    try:
        ArtifactStore((sweep.home / "artifacts").as_uri()).get(sha, scratch / "got")
    except IntegrityError:
        found["noticed"] = not (scratch / "got").exists()
        found["aside"] = not path.exists() and any(f.name.startswith(sha) for f in (sweep.home / "artifacts" / "quarantine").iterdir())
    except Exception as error:  # noqa: BLE001
        found["error"] = f"{type(error).__name__}: {error}"
    path.write_bytes(body)
    return found


def _all_at_once(sweep: Sweep, rng: random.Random) -> dict[str, Any]:
    """A record altered, a model gone, another altered and noticed by a reader: ``resume`` runs three trials again. And a timing that it takes again."""
    rows = sweep.rows()
    with closing(sqlite3.connect(sweep.home / "ledger.db")) as db, db:
        (told,) = db.execute("SELECT timings FROM timings LIMIT 1").fetchone()
        altered = re.sub(r'("sparse_s":{"[^:]*":[0-9]*\.)([0-9])', lambda m: m[1] + str((int(m[2]) + 1) % 10), told)
        db.execute("UPDATE timings SET timings=?", (altered,))
    with closing(sqlite3.connect(sweep.home / "ledger.db")) as db, db:
        number, body = db.execute(
            "SELECT id, body FROM records WHERE id=(SELECT record FROM trials WHERE key=?)", (rows[0].key,)
        ).fetchone()
        db.execute("UPDATE records SET body=? WHERE id=?", (_flip(body, rng), number))
    shas = [next(ref["sha256"] for ref in (row.record or {})["artifacts"] if ref["name"] == MODEL) for row in rows[1:3]]
    paths = [sweep.home / "artifacts" / sha[:2] / sha for sha in shas]
    paths[0].unlink()
    paths[1].write_bytes(_flip(paths[1].read_bytes(), rng))
    store = ArtifactStore((sweep.home / "artifacts").as_uri())
    try:
        store.get(shas[1], sweep.home / "got")
    except IntegrityError:
        moved = not paths[1].exists()
    else:
        moved = False
    code = sweep.driver().wait(_LIMIT_S)
    ends = {row.key: [attempt["end"] for attempt in row.attempts] for row in sweep.rows()}
    n_again = sum("DAMAGED" in ended for ended in ends.values())
    with read_ledger(sweep.home) as ledger:
        timed = altered != told and not ledger.damaged_timings(sweep.id) and bool(ledger.timings(sweep.id)[0].timings)
    note = f"{n_again} trials ran again, {'the timing was taken again' if timed else 'the timing was not'}, exit {code}"
    return {"code": code, "moved": moved, "n_again": n_again, "timed": timed, "note": note, "log": sweep.log[-2000:]}
