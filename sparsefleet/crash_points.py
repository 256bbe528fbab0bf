"""Places at which a process can be made to die, so that it can be shown that nothing is lost there.

``SPARSEFLEET_FAULT=POINT:NTH[,POINT:NTH…]`` kills the process that passes ``POINT`` for the ``NTH`` time, with SIGKILL and by its own hand. Passings
are counted over all processes of a home and over its drivers (in ``faults/POINT`` of the home), so that a driver that goes on does not die
there again. Without the variable a passing is one call that returns.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Mapping

from sparsefleet.errors import UserError, did_you_mean

VARIABLE = "SPARSEFLEET_FAULT"
POINTS = {
    "enqueue-before": "the grid's trials are known, nothing is written",
    "enqueue-inside": "a trial is entered, the sweep's transaction is open",
    "enqueue-after": "the sweep is entered, nobody was told",
    "recover-inside": "an attempt of a dead driver is ended, the transaction is open",
    "sweep-state-inside": "the sweep's state is set, the transaction is open",
    "lease-inside": "an attempt is leased, the transaction is open",
    "lease-after": "the leases are durable, no supervisor was told",
    "running-inside": "a trial is marked as running, the transaction is open",
    "child-begin": "a trial's process has begun",
    "child-end": "a trial has run and saved its files, its result is not told",
    "checkpoint-between": "a checkpoint's tensors are in place, its digest is not",
    "store-before": "a trial's files are about to be stored",
    "store-renaming": "a stored file is whole under a temporary name",
    "store-after": "a trial's files are stored, the driver was not told",
    "spool-between": "a file of the spool is stored and still in the spool",
    "commit-before": "the driver has a record and has not written it",
    "commit-inside": "a record is written, the transaction is open",
    "attempt-ended-inside": "an attempt without a record is ended, the transaction is open",
    "outbox-inside": "an item for MLflow is entered, the transaction is open",
    "transaction-before": "a transaction is about to be committed",
    "transaction-after": "a transaction is committed, whoever asked for it was not told",
    "timing-inside": "a timing is written, the transaction is open",
    "timing-after": "a timing is durable, nobody was told",
    "uploaded-before": "MLflow has an item, the ledger does not know",
}
"""Every point, and what has happened there and what has not."""


def parsed(text: str) -> dict[str, set[int]]:
    """The passings that are deadly, by point.

    Raises:
        UserError: there is no such point, or the number is none.
    """
    found: dict[str, set[int]] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        point, _, nth = part.partition(":")
        if point not in POINTS:
            raise UserError(f"{VARIABLE}: there is no point {point!r}", fix=did_you_mean(point, POINTS))
        if not nth.isdecimal() or int(nth) < 1:
            raise UserError(f"{VARIABLE}: {part!r} names no passing", fix=f"{point}:1 is the first")
        found.setdefault(point, set()).add(int(nth))
    return found


def refuse_typos(environ: Mapping[str, str] = os.environ) -> None:
    """Does nothing if the variable is unset or right.

    Raises:
        UserError: it is wrong.
    """
    parsed(environ.get(VARIABLE, ""))


def _asked() -> dict[str, set[int]]:
    try:
        return parsed(os.environ.get(VARIABLE, ""))
    except UserError:  # told by ``refuse_typos`` before anything runs
        return {}


_ASKED = _asked()


def passing(point: str) -> None:
    """This process is at ``point``; it may be its last moment."""
    if _ASKED and point in _ASKED and _count(point) in _ASKED[point]:
        os.kill(os.getpid(), signal.SIGKILL)


def _count(point: str) -> int:
    """How often the home's processes have passed the point, this time included."""
    from sparsefleet.home import home

    folder = home() / "faults"
    folder.mkdir(exist_ok=True, mode=0o700)
    fd = os.open(folder / point, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(fd, b".")
        return os.fstat(fd).st_size
    finally:
        os.close(fd)
