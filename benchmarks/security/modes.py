"""SE-08: whatever the umask is, nobody else can read what a sweep leaves behind: ledger, logs, locks, outbox, caches, bundles, Ray's token."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path

from benchmarks.figures import Figure, Run
from benchmarks.security.small import SmallHome
from sparsefleet.fleet.token import token_file
from sparsefleet.ledger import open_ledger

PLUGIN = '''"""Magnitude, in a file of one's own."""
from sparsefleet import Pruner, hookimpl

class Own(Pruner):
    """Magnitude."""
    name = "own-magnitude"
    def score(self, conn):
        print("scoring")
        return conn.weight.abs()

@hookimpl
def sparsefleet_pruners():
    return [Own]
'''
MUST_BE_THERE = (
    "ledger.db",
    "ledger.db-wal",
    "mlflow.db",
    "logs",
    "locks",
    "artifacts",
    "bundles",
    "uploader.log",
    "tracking-id",
    "catalog.json",
)


def open_to_others(here: SmallHome) -> list[str]:
    """What has a bit for group or world, symbolic links aside."""
    return [
        f"{stat.S_IMODE(path.lstat().st_mode):04o} {path.relative_to(here.folder)}"
        for path in here.everything()
        if not path.is_symlink() and path.lstat().st_mode & 0o077
    ]


def left_by(folder: Path, umask: int) -> tuple[list[str], set[str], int]:
    """What a sweep with a plugin file leaves open under ``umask``, the names of all files, and how many they are."""
    here = SmallHome(folder)
    plugin = folder / "own.py"
    plugin.write_text(PLUGIN)
    done = here.command("submit", "grid", str(here.grid("modes", "method: {pruner: own-magnitude}")), "--plugin", str(plugin), umask=umask)
    if done.returncode != 0:
        raise RuntimeError(f"the sweep ended with {done.returncode}: {done.stderr[-2000:]}")
    with open_ledger(here.home) as ledger:  # holds -wal and -shm open
        ledger.enqueue("sweep", ledger.sweeps()[0].sweep, None, {})
        return open_to_others(here), {path.name for path in here.everything()}, len(list(here.everything()))


def figures(run: Run) -> list[Figure]:
    """Files and folders that others can reach, after a sweep under each umask; the mode of Ray's token."""
    found = []
    raw = {}
    for umask in (0o022, 0o000):
        with tempfile.TemporaryDirectory(prefix="sparsefleet-modes-") as folder:
            run.say(f"umask {umask:03o}")
            is_open, names, n_files = left_by(Path(folder), umask)
        missing = [name for name in MUST_BE_THERE if name not in names]
        raw[f"{umask:03o}"] = {"open": is_open, "files": n_files, "missing": missing}
        if missing:
            raise RuntimeError(f"the sweep left no {', '.join(missing)}, so nothing is shown")
        found.append(
            Figure(
                f"files open to others, umask {umask:03o}",
                "files",
                len(is_open),
                target=0,
                at_least=False,
                note="; ".join(is_open[:4]) or f"of {n_files}",
            )
        )
    run.keep(raw)
    token = token_file()
    bits = token.stat().st_mode & 0o077 if token.exists() else None
    note = "" if token.exists() else "Ray has written no token"
    return [*found, Figure("bits of Ray's token file for others", "bits", bits, target=0, at_least=False, note=note)]
