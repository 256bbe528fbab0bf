"""SE-08: whatever the umask is, nobody else can read what a sweep leaves behind: ledger, logs, locks, outbox, caches, bundles, Ray's token; and
what a node leaves that does not share the home: its own folder, and in it the spool of a store that went away."""

from __future__ import annotations

import getpass
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import Figure, Run
from benchmarks.security.small import SmallHome
from sparsefleet.ledger import open_ledger

PLUGIN = '''"""Magnitude, in a file of one's own."""
import os
from sparsefleet import Pruner, hookimpl

class Own(Pruner):
    """Magnitude."""
    name = "own-magnitude"
    def score(self, conn):
        print("scoring")
        if "STORE" in os.environ and os.path.isdir(os.environ["STORE"]):  # it goes away while the trial runs
            os.rename(os.environ["STORE"], os.environ["STORE"] + ".away")
            open(os.environ["STORE"], "w").close()
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
    "auth_token",
)
MUST_BE_ON_THE_NODE = ("bundles", "spool", "work", "logs", ".plugins.zip")
_FAR = """
import runpy, sys
from sparsefleet.fleet import logs
logs.home_id = lambda home: "the word of another home"  # so this node takes the driver's home for one that it does not see
sys.argv[0] = "sparsefleet"
runpy.run_module("sparsefleet.cli", run_name="__main__")
"""


class Scene:
    """A home, a user's folder for Ray's token and a folder for temporary files, all below ``folder``; Ray keeps its own files elsewhere."""

    def __init__(self, folder: Path, umask: int) -> None:
        self.umask = umask
        self.user, self.temporary, self.store = folder / "user", folder / "tmp", folder / "store"
        self.user.mkdir(mode=0o700)
        self.temporary.mkdir()
        self.temporary.chmod(0o1777)
        own = {"HOME": str(self.user), "TMPDIR": str(self.temporary), "RAY_TMPDIR": "/tmp", "SPARSEFLEET_ARTIFACTS": self.store.as_uri()}
        self.here = SmallHome(folder, own)
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
            self.here.environment.pop(name, None)
        self.plugin = folder / "own.py"
        self.plugin.write_text(PLUGIN)
        grid = self.here.grid("modes", "method: {pruner: own-magnitude}")
        self.submit = ["submit", "grid", str(grid), "--plugin", str(self.plugin)]

    @property
    def node(self) -> Path:
        """Below it lie the folders of nodes of this machine."""
        return self.temporary / f"sparsefleet-{getpass.getuser()}"

    def near(self) -> None:
        """A sweep on this machine alone; its ledger is held open afterwards, so that what SQLite keeps beside it is there."""
        done = self.here.command(*self.submit, umask=self.umask, SPARSEFLEET_ARTIFACTS=(self.here.home / "artifacts").as_uri())
        if done.returncode != 0:
            raise RuntimeError(f"the sweep ended with {done.returncode}: {done.stderr[-2000:]}")

    def far(self) -> subprocess.CompletedProcess[str]:
        """A sweep on a node that does not see the home, and whose store goes away while a trial runs."""
        return subprocess.run(
            [sys.executable, "-P", "-c", _FAR, *self.submit],
            env={**self.here.environment, "STORE": str(self.store)},
            cwd=self.here.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            umask=self.umask,
            timeout=400,
            check=False,
        )


def everything(roots: Sequence[Path]) -> list[Path]:
    """Every file and folder of these, themselves included, links aside."""
    return [path for root in roots if root.exists() for path in (root, *root.rglob("*")) if not path.is_symlink()]


def open_to_others(paths: Sequence[Path], folder: Path) -> list[str]:
    """What has a bit for group or world."""
    modes = [(stat.S_IMODE(path.lstat().st_mode), path) for path in paths]
    return [f"{mode:04o} {path.relative_to(folder)}" for mode, path in modes if mode & 0o077]


def _left_near(folder: Path, umask: int) -> tuple[list[str], int]:
    scene = Scene(folder, umask)
    scene.near()
    with open_ledger(scene.here.home) as ledger:
        ledger.enqueue("sweep", ledger.sweeps()[0].sweep, None, {})
        found = everything([scene.here.home, scene.here.cache, scene.user / ".ray" / "auth_token"])
        _demand(MUST_BE_THERE, found)
        return open_to_others(found, folder), len(found)


def _left_far(folder: Path, umask: int) -> tuple[list[str], int]:
    scene = Scene(folder, umask)
    done = scene.far()
    found = everything([scene.node, scene.here.home])
    try:
        _demand(MUST_BE_ON_THE_NODE, [path for path in found if path.is_relative_to(scene.node)])
        if not [path for path in found if path.parent.parent.name == "spool"]:
            raise RuntimeError("nothing waits in the spool, so nothing is shown")
    except RuntimeError as error:
        raise RuntimeError(f"{error}; the sweep ended with {done.returncode}: {done.stderr[-2000:]}") from error
    return open_to_others(found, folder), len(found)


def _demand(names: Sequence[str], found: Sequence[Path]) -> None:
    missing = sorted(set(names) - {path.name for path in found})
    if missing:
        raise RuntimeError(f"the sweep left no {', '.join(missing)}, so nothing is shown")


def _planted(folder: Path) -> str:
    """What is wrong after another user has made the node's folder first and left it open; empty if the sweep refused it by name and ran nothing."""
    scene = Scene(folder, 0o022)
    scene.node.mkdir()
    scene.node.chmod(0o777)
    done = scene.far()
    if done.returncode != 4 or str(scene.node) not in done.stderr or "0777" not in done.stderr or "Traceback" in done.stderr:
        return f"ended with {done.returncode}: {done.stderr[-300:]}"
    return ", ".join(str(path.name) for path in scene.node.iterdir())


def figures(run: Run) -> list[Figure]:
    """Files and folders that others can reach, after a sweep near and far under each umask, and a folder of others that must not be used."""
    found, raw = [], {}
    for where, left, umask in (("home", _left_near, 0), ("node", _left_far, 0)):  # which a stricter umask only takes from
        run.say(f"{where}, umask {umask:03o}")
        with tempfile.TemporaryDirectory(prefix="sf-modes-") as name:
            is_open, n_files = left(Path(name), umask)
        raw[f"{where} {umask:03o}"] = {"open": is_open, "files": n_files}
        what = "files open to others" if where == "home" else "files open to others on a node without the home"
        note = "; ".join(is_open[:4]) or f"of {n_files}"
        found.append(Figure(f"{what}, umask {umask:03o}", "files", len(is_open), target=0, at_least=False, note=note))
    run.say("a folder that another user made first")
    with tempfile.TemporaryDirectory(prefix="sf-modes-") as name:
        wrong = _planted(Path(name))
    run.keep({**raw, "planted": wrong})
    return [*found, Figure("folders of others that are refused", "folders", int(not wrong), target=1, note=wrong)]
