"""Files that wait for an artifact store that is away: on the node that made them, by digest, until the store has them.

A file in the spool is pending; there is no list that could differ from it. Whoever passes by empties it: a supervisor whose store answers
again, the uploader, and the driver when it begins and when it ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from sparsefleet.crash_points import passing
from sparsefleet.errors import BackendUnreachable
from sparsefleet.ledger.store import ArtifactRef, ArtifactStore, file_sha256, set_aside
from sparsefleet.space import means_no_space, min_free_mib, no_space

FOLDER = "spool"
_LOCK = ".lock"
_DIGEST_LENGTH = 64


def store_of(uri: str, root: Path) -> ArtifactStore:
    """The store, which reads what it lacks from the spool under ``root``: the home, or what stands for it on a node."""
    return ArtifactStore(uri, root / FOLDER)


def keep(store: ArtifactStore, files: Sequence[tuple[str, Path]]) -> tuple[list[ArtifactRef], bool]:
    """The references of files by (name, path), durable when it returns; True if they are in the spool and not in the store.

    Raises:
        NoSpace: neither has room for them.
    """
    assert store.spool is not None
    passing("store-before")
    try:
        refs, is_pending = store.put_all(files), False
    except BackendUnreachable:
        try:
            refs, is_pending = ArtifactStore(str(store.spool)).put_all(files), True
        except BackendUnreachable as error:
            if means_no_space(error):
                needed = min_free_mib() + sum(path.stat().st_size for _, path in files) / (1 << 20)
                raise no_space(store.spool, needed) from error
            raise
    passing("store-after")
    return refs, is_pending


def pending(spool: Path) -> list[Path]:
    """The files that wait, by digest."""
    return sorted(path for path in spool.glob("??/*") if len(path.name) == _DIGEST_LENGTH)


def flush(store: ArtifactStore) -> int:
    """Hands to the store what waits for it; how many files it took. One process at a time does it, the others find nothing to do.

    Raises:
        BackendUnreachable: the store is still away; what it has taken has left the spool.
    """
    spool, n = store.spool, 0
    if spool is None or not pending(spool):
        return 0
    with _turn(spool) as is_mine:
        for path in pending(spool) if is_mine else ():
            if file_sha256(path) != path.name:
                set_aside(path, spool)  # never handed on; its trial's record names it, so reading tells
                continue
            store.put_as(path, path.name)
            passing("spool-between")
            path.unlink()
            n += 1
    return n


@contextmanager
def _turn(spool: Path) -> Iterator[bool]:
    fd = os.open(spool / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        is_mine = False
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_mine = True
        yield is_mine
    finally:
        os.close(fd)
