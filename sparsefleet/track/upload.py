"""The one process per home that carries the ledger's outbox to MLflow: ``python -m sparsefleet.track.upload --home HOME``.

Nothing in a trial waits for it. It follows its driver; when the driver is gone, or asks it to finish (SIGTERM), it empties the outbox and
ends. A server that is away costs it some tries; what is left stays in the outbox for the next time. It may be killed at any moment.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from sparsefleet.errors import BackendUnreachable
from sparsefleet.ledger.spool import flush, store_of
from sparsefleet.redact import RedactedFormatter
from sparsefleet.spawn import module_command
from sparsefleet.track import server

if TYPE_CHECKING:
    from sparsefleet.ledger.ledger import Ledger
    from sparsefleet.ledger.rows import OutboxItem
    from sparsefleet.track.pictures import Draw
    from sparsefleet.track.writer import Writer

LOG = "uploader.log"
UNREACHABLE = BackendUnreachable.exit_code
AWAY = "uploader.away"
"""A file of the home that is there while MLflow, or the artifact store, is not."""
LEFT = 1
"""Exit code: the server answers, but did not take some items."""
_LOG_LIMIT = 4 << 20
_BATCH = 50
_POLL_S = 0.5
_TRIES_PER_ITEM = 3
_TRIES_WHEN_ALONE = 3
_LONGEST_WAIT_S = 30.0

log = logging.getLogger("sparsefleet.track.upload")


class Following:
    """How long to go on: until the process ``parent`` is gone or asks to finish; without a parent, only until the outbox is empty."""

    def __init__(self, parent: int | None = None) -> None:
        self._parent = parent
        self._asked = False

    def ask(self, signum: int = 0, frame: FrameType | None = None) -> None:
        """Nothing more will come; also the handler of SIGTERM."""
        self._asked = True

    def alone(self) -> bool:
        """True if nothing more will come."""
        return self._asked or self._parent is None or os.getppid() != self._parent

    def wait(self, seconds: float) -> None:
        """Sleep, but no longer than until nothing more will come."""
        was_alone, end = self.alone(), time.monotonic() + seconds
        while time.monotonic() < end and self.alone() == was_alone:
            time.sleep(0.1)


def spawn(home: Path, uri: str | None = None) -> subprocess.Popen[bytes]:
    """Start the uploader of ``home`` as a child of this process, in a session of its own: Ctrl-C does not reach it.

    Args:
        uri: of MLflow; None means ``MLFLOW_TRACKING_URI``, else the home's own database.
    """
    command = module_command("sparsefleet.report.upload", "--home", str(home.absolute()), "--parent-pid", str(os.getpid()))
    environment = {**server.environment(), "MLFLOW_TRACKING_URI": server.tracking_uri(home, uri)}  # not an argument: it may hold a password
    path = home / LOG
    if path.exists() and path.stat().st_size > _LOG_LIMIT:
        path.unlink()
    held = signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGTERM}
    )  # inherited: whoever asks it to finish before it listens is heard later
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "wb") as out:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, start_new_session=True, cwd=home
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def is_away(home: Path) -> bool:
    """True if the last try of an uploader of ``home`` found nobody."""
    return (home / AWAY).exists()


def finish(process: subprocess.Popen[bytes], timeout_s: float | None = None, enough: Callable[[], bool] = lambda: False) -> bool:
    """Ask the uploader to empty the outbox and end, and wait for it; True if nothing is left.

    After ``timeout_s``, or when there is ``enough``, it is left alone: it goes on by itself and ends when it is done.
    """
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    end = None if timeout_s is None else time.monotonic() + timeout_s
    while process.poll() is None and (end is None or time.monotonic() < end):
        if enough():
            return True
        with suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_S if end is None else max(0.0, min(_POLL_S, end - time.monotonic())))
    return process.poll() == 0


def drain(home: Path, uri: str, following: Following, draw: Draw | None = None) -> int:
    """Carry the outbox of ``home`` to MLflow; returns the exit code: 0 empty, 1 some items refused, 4 MLflow away."""
    from sparsefleet.ledger.ledger import open_ledger

    with open_ledger(home) as ledger, _Turn(home) as turn:
        uploader = _Uploader(home, uri, ledger, draw, turn.is_awaited)
        tries = 0
        while True:
            alone = following.alone()  # asked before the pass: what came before the end is seen by the last pass
            wait_s = _POLL_S
            try:
                if turn.is_mine() or (turn.is_next() and turn.is_mine()):  # asking for the place behind it tells its holder that one waits
                    uploader.pass_on(last=alone)
                    tries = 0
                    (home / AWAY).unlink(missing_ok=True)
                if alone and (turn.is_mine() or not ledger.outbox_size()):
                    return LEFT if ledger.outbox_size() and not turn.is_awaited() else 0
                if alone and not turn.is_next():
                    return 0  # one works and one waits: they carry it all
            except BackendUnreachable as error:
                tries += 1
                (home / AWAY).touch(mode=0o600)
                log.warning("%s", error)
                if alone and tries >= _TRIES_WHEN_ALONE:
                    return UNREACHABLE
                wait_s = min(_LONGEST_WAIT_S, 2.0 ** min(tries - 1, 10))
            following.wait(wait_s)


class _Uploader:
    """A writer, made when MLflow first answers, and what MLflow refused."""

    def __init__(self, home: Path, uri: str, ledger: Ledger, draw: Draw | None, is_awaited: Callable[[], bool]) -> None:
        self._home, self._uri, self._ledger, self._draw, self._is_awaited = home, uri, ledger, draw, is_awaited
        self._writer: Writer | None = None
        self._refused: Counter[int] = Counter()
        self._reconciled = False
        self._store = store_of(os.environ.get("SPARSEFLEET_ARTIFACTS") or (home / "artifacts").as_uri(), home)

    def pass_on(self, *, last: bool) -> None:
        """Upload what waits, each item tried once; set the sweeps' states right at the first and at the last pass.

        Raises:
            BackendUnreachable: MLflow or the artifact store does not answer.
        """
        with suppress(BackendUnreachable):  # the store is away: what waits for it goes on waiting, and the rest is sent
            flush(self._store)
        waiting = self._waiting(set(), pictures=last)
        if not waiting and self._reconciled and not last:
            return
        writer = self._writer or self._connect()
        tried: set[int] = set()
        while waiting:
            for item in waiting:
                tried.add(item.id)
                self._send(writer, item)
            waiting = self._waiting(tried, pictures=last)
        if last or not self._reconciled:
            try:
                writer.reconcile()
            except Exception as error:
                self._writer = None
                raise server.unreachable(self._uri, error) from error
            self._reconciled = True

    def _waiting(self, tried: set[int], *, pictures: bool) -> list[OutboxItem]:
        """What may be sent now; pictures last, one item at a time, and only when no driver has work that drawing could disturb."""
        items = [
            item
            for item in self._ledger.outbox(_BATCH + len(tried) + len(self._refused))
            if item.id not in tried and self._refused[item.id] < _TRIES_PER_ITEM
        ]
        others = [item for item in items if item.kind != "pictures"]
        return others if others or not pictures or self._is_awaited() else items[:1]

    def _send(self, writer: Writer, item: OutboxItem) -> None:
        try:
            drawn = item.kind != "pictures" or os.environ.get("SPARSEFLEET_PICTURES") != "off"
            run_id = writer.write(item) if drawn else ""
        except BackendUnreachable:
            raise
        except Exception as error:
            if not server.is_there(writer.client):
                self._writer = None
                raise server.unreachable(self._uri, error) from error
            self._refused[item.id] += 1
            said = server.without_secrets(f"{type(error).__name__}: {error}", self._uri)
            self._ledger.mark_failed(item.id, said)
            log.warning("%s of sweep %s was refused: %s", item.kind, item.sweep, said)
        else:
            self._ledger.mark_uploaded(item.id, run_id or None)

    def _connect(self) -> Writer:
        from sparsefleet.track.writer import Writer

        client = server.connect(self._uri, create=True)
        where = server.artifact_location(self._home, self._uri)
        self._writer = Writer(
            client, self._ledger, self._store, home_id=server.home_id(self._home), artifact_location=where, draw=self._draw
        )
        return self._writer


class _Turn:
    """The right to be the home's only uploader, and the right to be the next one; the kernel frees both when their holder dies."""

    def __init__(self, home: Path) -> None:
        folder = home / "locks"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._now, self._next = (os.open(folder / f"uploader.{name}", flags, 0o600) for name in ("lock", "next"))
        self._mine = self._waiting = False

    def is_mine(self) -> bool:
        """True if this process has the turn, or gets it now."""
        if not self._mine and _taken(self._now):
            self._mine = True
            if self._waiting:
                fcntl.flock(self._next, fcntl.LOCK_UN)
                self._waiting = False
        return self._mine

    def is_next(self) -> bool:
        """True if this process has the turn, or is the one that waits for it."""
        self._waiting = self._waiting or (not self._mine and _taken(self._next))
        return self._mine or self._waiting

    def is_awaited(self) -> bool:
        """True if another process waits for the turn that this one has."""
        if not _taken(self._next):
            return True
        fcntl.flock(self._next, fcntl.LOCK_UN)
        return False

    def __enter__(self) -> _Turn:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._now)
        os.close(self._next)


def _taken(fd: int) -> bool:
    """True if the lock of the open file is ours now."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main(argv: Sequence[str] | None = None, draw: Draw | None = None) -> int:
    """The process's entry; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m sparsefleet.track.upload", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="the SPARSEFLEET_HOME whose outbox is carried")
    until = parser.add_mutually_exclusive_group(required=True)
    until.add_argument("--parent-pid", type=int, help="follow this process, our parent")
    until.add_argument("--until-empty", action="store_true", help="end when the outbox is empty")
    chosen = parser.parse_args(argv)
    home: Path = chosen.home.absolute()
    handler = logging.StreamHandler()
    handler.setFormatter(RedactedFormatter("%(asctime)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    os.umask(0o077)
    os.chdir(home)  # MLflow's own default experiment notes the working folder as its place
    os.nice(10)  # training has the cores first
    following = Following(chosen.parent_pid)
    signal.signal(signal.SIGTERM, following.ask)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    return drain(home, server.tracking_uri(home), following, draw)


if __name__ == "__main__":
    sys.exit(main())
