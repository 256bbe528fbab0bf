"""RF-15: bits are flipped and files cut in records, masks, models and checkpoints. Each is noticed before it is used, and its trial runs again."""

from __future__ import annotations

import random
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
from sparsefleet.ledger import ArtifactStore, open_ledger
from sparsefleet.trial.checkpoint import FILE, SIDE, load_checkpoint, save_checkpoint
from sparsefleet.trial.files import MANIFEST, MASKS, MODEL

N_FLIPS, N_CUTS = 200, 50
KINDS = ("record", MODEL, MASKS, MANIFEST, FILE, SIDE)


def figures(asked: Run) -> list[Figure]:
    """How many damages are noticed, and whether damaged trials end as they did before."""
    n_flips, n_cuts, rng = asked.pick(N_FLIPS, 24), asked.pick(N_CUTS, 12), random.Random(0)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="sparsefleet-corruption-") as folder:
        home = Path(folder) / "home"
        home.mkdir()
        sweep = Sweep(home, 3, epochs=1)
        sweep.driver().wait(240)
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
            "damaged trials that ran again and ended as before", "sweeps", float(again["same"] and not wrong), target=1, note=again["note"]
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
    """A record altered, a model gone, another altered and noticed by a reader: ``resume`` runs three trials again."""
    rows = sweep.rows()
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
    code = sweep.driver().wait(240)
    ends = {row.key: [attempt["end"] for attempt in row.attempts] for row in sweep.rows()}
    n_again = sum("DAMAGED" in ended for ended in ends.values())
    return {"code": code, "moved": moved, "n_again": n_again, "note": f"{n_again} trials ran again, exit {code}", "log": sweep.log[-2000:]}
