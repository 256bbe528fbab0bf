"""Room on the disk: how much is free, how much is needed, and how to tell that an error means that there is none."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsefleet.errors import NoSpace, UserError

VARIABLE = "SPARSEFLEET_MIN_FREE_MIB"
MIN_FREE_MIB = 64.0
"""Below this no trial is started: what runs can still be stored, and the ledger can be written."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SQLITE = ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE")
"""The second is said by whoever opens a database on a full disk, to read it, too; its words are "disk I/O error"."""
_TEXTS = ("database or disk is full", "No space left on device", "Disk quota exceeded", "os error 28")
_MIB = 1 << 20


def min_free_mib() -> float:
    """``SPARSEFLEET_MIN_FREE_MIB``, else 64.

    Raises:
        UserError: it is no number.
    """
    text = os.environ.get(VARIABLE, "")
    try:
        value = float(text) if text else MIN_FREE_MIB
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UserError(f"{VARIABLE} must be a number of MiB, got {text!r}")
    return value


def free_mib(place: Path) -> float:
    """What may still be written below ``place``, which need not exist yet; infinite where nobody can tell."""
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return shutil.disk_usage(place).free / _MIB
    except OSError:
        return float("inf")


def shortage(places: Iterable[Path], needed_mib: float) -> NoSpace | None:
    """The error of the first place that has less than ``needed_mib``."""
    for place in places:
        free = free_mib(place)
        if free < needed_mib:
            return no_space(place, needed_mib, free)
    return None


def no_space(place: Path, needed_mib: float, free: float | None = None) -> NoSpace:
    """The error that names the place and what is needed there."""
    free = free_mib(place) if free is None else free
    return NoSpace(
        f"the disk of {place} is full: {free:.1f} MiB are free, {max(needed_mib, 1.0):.0f} MiB are needed",
        fix=f"make room, or set SPARSEFLEET_HOME or SPARSEFLEET_ARTIFACTS to another disk; then: sparsefleet resume (limit: {VARIABLE})",
    )


@contextmanager
def telling(place: Path) -> Iterator[None]:
    """Turns the system's words for a full disk, wherever they come from, into the error that names the place.

    Raises:
        NoSpace: the disk was full.
    """
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        if means_no_space(error):
            raise no_space(place, min_free_mib()) from error
        raise


def means_no_space(error: BaseException | None) -> bool:
    """True if the error, or what caused it, says that a disk is full."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, NoSpace) or (isinstance(error, OSError) and error.errno in _FULL):
            return True
        if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorname", "") in _SQLITE:
            return True
        if any(
            isinstance(said, str) and text in said for said in error.args for text in _TEXTS
        ):  # of libraries that wrap the system's error
            return True
        error = error.__cause__ or error.__context__
    return False
