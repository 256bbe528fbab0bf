"""The supervisor of one slot: a Ray actor that runs trials in forked children and never imports torch or a plugin itself."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray

from sparsefleet import home as places
from sparsefleet.errors import BackendUnreachable, IntegrityError, NoSpace, SparsefleetError
from sparsefleet.fleet.bundle import unpacked
from sparsefleet.fleet.forward import Printed
from sparsefleet.fleet.head import HeadWatch
from sparsefleet.fleet.jobs import START
from sparsefleet.fleet.logs import LOG, is_home, log_path
from sparsefleet.fleet.outcome import DAMAGED, RESULT, WAITS, Outcome, classify
from sparsefleet.fleet.server import ForkServer, ServerLost
from sparsefleet.ledger.spool import flush, keep, store_of
from sparsefleet.space import means_no_space, min_free_mib, no_space
from sparsefleet.trial import files

BEAT_S = 2.0
_T = TypeVar("_T")
_NOT_KEPT = (files.RECORD, f"{START}/", ".", "checkpoint.")
"""Beginnings of names in a work folder that are no artifacts."""
_MAX_LOG_BYTES = 10 << 20


@dataclass(frozen=True)
class Setup:
    """What every supervisor of a driver is told once."""

    home: str
    store: str
    node: str = ""
    """Ray's id of the driver's node, and the fork server that waits there."""
    node_server: str | None = None
    bundle: dict[str, Any] | None = None
    """The sweep's own plugins; see ``sparsefleet.fleet.bundle``."""
    home_id: str = ""


class _StoreAway(Exception):
    """What a trial needs cannot be fetched now."""


class Supervisor:
    """Runs one child at a time. A second job may be sent behind the first: its child starts when the first one's has ended."""

    def __init__(self, setup: Setup) -> None:
        places.keep_private()
        os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"  # of a node that somebody else started, too
        self._setup = setup
        self._root = _root_on_this_node(Path(setup.home), setup.home_id)
        self._forwards = self._root != Path(setup.home)
        self._store = store_of(setup.store, self._root)
        self._server: ForkServer | None = None
        self._turn = threading.Lock()
        HeadWatch(ray.get_runtime_context().gcs_address, _leave).start()
        threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True, name="raylet-watch").start()

    def place(self) -> tuple[str, int]:
        """Ray's id of the node, and the process id of the supervisor; at once."""
        return str(ray.get_runtime_context().get_node_id()), os.getpid()

    def hello(self) -> dict[str, Any]:
        """What this node would run; ready for work when it answers.

        Raises:
            BackendUnreachable: its own folder for trials is not safe to use.
        """
        if self._forwards:  # checked here and not when the actor starts: an actor that does not start is tried again
            places.own_folder(places.own_folder(self._root.parent) / self._root.name)
        return self._fork_server().describe()

    def _fork_server(self) -> ForkServer:
        if self._server is None:
            bundle = unpacked(self._setup.bundle, self._store, self._root) if self._setup.bundle else None
            if ray.get_runtime_context().get_node_id() == self._setup.node:
                self._server = ForkServer(self._setup.node_server, bundle)
            else:  # this node's own code, not what Ray added of the driver's search path
                self._server = ForkServer(None, bundle, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        return self._server

    def run(self, job_text: str) -> Iterator[dict[str, Any]]:
        """Run one job (JSON; see ``sparsefleet.fleet.jobs``): ``started``, ``progress``, ``output``, ``storing``, ``beat`` while silent, and ``ended`` last."""
        job = json.loads(job_text)
        for key in job.pop("forget", []):
            shutil.rmtree(self._workdir(key), ignore_errors=True)
        try:
            job = yield from _beating(lambda: self._prepared(job))
            with self._turn:  # the next job's child may run while this one's files are stored
                said = yield from self._child(job)
            yield {"kind": "storing"}  # the child's time is over
            outcome = yield from _beating(lambda: self._stored(job, classify(said["o"], said)))
        except NoSpace as error:
            outcome = Outcome(WAITS, str(error))
        except IntegrityError as error:
            outcome = Outcome(DAMAGED, str(error))
        except SparsefleetError as error:
            outcome = Outcome("LOST", str(error))
        except _StoreAway as error:
            outcome = Outcome(WAITS, str(error))
        except OSError as error:
            if not means_no_space(error):
                raise
            outcome = Outcome(WAITS, str(no_space(self._root, min_free_mib())))
        yield {"kind": "ended", **vars(outcome)}

    def _child(self, job: dict[str, Any]) -> Generator[dict[str, Any], None, dict[str, Any]]:
        """What the child and its server said last, by kind."""
        said: dict[str, Any] = {}
        printed = Printed(Path(job["log"])) if self._forwards else None
        try:
            for kind, body in self._fork_server().run(job, BEAT_S):
                if printed:
                    yield from printed.new(last=kind == "o")
                if kind == "s":
                    yield {"kind": "started", "node": socket.gethostname()}
                elif kind == "p":
                    yield {"kind": "progress", "values": body}
                elif kind:
                    said[kind] = body
                else:
                    yield {"kind": "beat"}
        except ServerLost as error:
            if self._server:
                self._server.close()
            self._server = None
            raise BackendUnreachable(str(error)) from error
        return said

    def _workdir(self, key: str) -> Path:
        return self._root / "work" / key

    def _prepared(self, job: dict[str, Any]) -> dict[str, Any]:
        """The job with this node's paths; the files that it needs are in its work folder."""
        key, attempt = job["key"], job["attempt"]
        workdir = self._workdir(job.get("folder", key))
        try:
            for name, digest in job["fetch"].items():
                self._store.get(digest, workdir / name)
        except NoSpace:
            raise
        except BackendUnreachable as error:
            raise _StoreAway(str(error)) from error
        job = {**job, "workdir": str(workdir), "log": str(log_path(self._root, key, attempt))}
        if "request" in job:
            here = {
                "workdir": str(workdir),
                "start": str(workdir / START) if any(name.startswith(f"{START}/") for name in job["fetch"]) else None,
            }
            if not Path(job["request"]["data_root"]).is_dir():
                here["data_root"] = str(places.data_root())
            job["request"] = {**job["request"], **here}
        return job

    def _stored(self, job: dict[str, Any], outcome: Outcome) -> Outcome:
        """The outcome with the digests of the files in its record; they are in the store."""
        log = Path(job["log"])
        with suppress(FileNotFoundError):
            if log.stat().st_size == 0:
                log.unlink()
        if outcome.end != RESULT or outcome.record is None or "request" not in job:
            return outcome
        workdir = Path(job["workdir"])
        kept = [
            (path.relative_to(workdir).as_posix(), path) for path in sorted(workdir.rglob("*")) if path.is_file() and not path.is_symlink()
        ]
        kept = [(name, path) for name, path in kept if not name.startswith(_NOT_KEPT)]
        if log.exists() and log.stat().st_size <= _MAX_LOG_BYTES:
            kept.append((LOG, log))
        refs, is_pending = keep(self._store, kept)
        if not is_pending:
            with suppress(BackendUnreachable):  # it answered a moment ago; what is left waits for the next time
                flush(self._store)
        record = {**outcome.record, "artifacts": [ref.to_json() for ref in refs]}
        return Outcome(RESULT, "", record, outcome.wall_s, outcome.peak_mib)


def _beating(work: Callable[[], _T]) -> Generator[dict[str, Any], None, _T]:
    """The result of ``work``, with a sign of life while a slow store keeps it."""
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(work)
        while not wait([future], timeout=BEAT_S).done:
            yield {"kind": "beat"}
        return future.result()


def _root_on_this_node(home: Path, known: str) -> Path:
    """The driver's home where this node sees it, so that checkpoints and logs are shared; else a folder of this node, still to be made."""
    if is_home(home, known):
        return home
    name = hashlib.sha256(f"{home} {known}".encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"sparsefleet-{getpass.getuser()}" / name


def _leave_with(raylet: int) -> None:
    """Without its raylet Ray has given this process up, and what it brings is refused: its trial runs elsewhere by now."""
    while os.getppid() == raylet:
        time.sleep(0.5)
    _leave(f"the raylet {raylet} has ended")


def _leave(reason: str) -> None:
    """Without a head no result arrives, and Ray would let this process and its trial run on for a minute. The fork server ends the trial."""
    os._exit(1)
