"""The exclusive right to a device of this node while a timing is taken: also against other sweeps and other users of sparsefleet."""

from __future__ import annotations

import fcntl
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sparsefleet.errors import BackendUnreachable

LEASE_WAIT_S = 600.0
"""How long a measurement waits for another one to end: it takes minutes, and its time limit begins after that."""
_POLL_S = 0.1
_TELL_EVERY_S = 1.0
_JUST_MADE_S = 1.0
"""How long a lock that may not be opened can still be one that another user is about to open up."""
_MODE = 0o644
FOLDERS: Sequence[str] = ("/run/lock", "/tmp")
"""Where all users look, so what lies there is opened as if an enemy had put it there. Not ``TMPDIR``, which a batch system sets for each job: two jobs
would each find the device free. ``/run/lock`` comes first since a batch system may give each job a ``/tmp`` of its own."""
WAITS_FOR = "waits_for"
"""In what a measurement reports while it runs: why it has not begun."""


@contextmanager
def device_lease(device: str, wait_s: float, tell: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Held while entered; the kernel frees it when the process dies. A GPU's is named by its UUID, since two processes may number it differently.

    Args:
        tell: hears, about once a second, what is waited for.

    Raises:
        BackendUnreachable: someone else measured for longer than ``wait_s``, or the lock cannot be opened.
    """
    name = re.sub(r"[^A-Za-z0-9]+", "-", _known_to_all(device))
    path = _folder() / f"sparsefleet-measure-{name}.lock"
    fd = _acquire(path, device, wait_s, tell)
    try:
        yield
    finally:
        os.close(fd)


def _acquire(path: Path, device: str, wait_s: float, tell: Callable[[str], None]) -> int:
    deadline = time.monotonic() + wait_s
    tell_at = 0.0
    while True:
        fd = _open(path)
        if _locked(fd, path):
            return fd
        who = _holder(fd)
        os.close(fd)
        now = time.monotonic()
        if now > deadline:
            raise BackendUnreachable(
                f"{device} was being measured by someone else for {wait_s:.0f} s", cause=f"{who} holds the lock {path}"
            )
        if now >= tell_at:
            tell_at = now + _TELL_EVERY_S
            tell(f"waits for {device}: {who} measures on it")
        time.sleep(_POLL_S)


def _known_to_all(device: str) -> str:
    if not device.startswith("cuda"):
        return device
    from sparsefleet.measure.gpu import uuid_of

    return uuid_of(device) or device


def _folder() -> Path:
    """The first folder where anybody may make a file and nobody may remove another's; all users find the same one."""
    for folder in map(Path, FOLDERS):
        wanted = stat.S_ISVTX | stat.S_IWOTH
        if folder.is_dir() and folder.stat().st_mode & wanted == wanted:
            return folder
    raise BackendUnreachable(
        f"nobody can say who measures on this node: {' and '.join(FOLDERS)} are not open to all users",
        fix=f"as root: chmod 1777 {FOLDERS[-1]}",
    )


def _open(path: Path) -> int:
    """The lock's file, which everybody may read and only who made it may write: a lock needs no more."""
    until = time.monotonic() + _JUST_MADE_S
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a link is refused, and a pipe does not hold us up
    while True:
        try:
            try:
                fd = os.open(path, flags)
            except FileNotFoundError:  # O_EXCL, since O_CREAT on another user's file is refused where fs.protected_regular is on
                fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, _MODE)
        except (FileExistsError, FileNotFoundError):
            continue
        except OSError as error:
            if isinstance(error, PermissionError) and time.monotonic() < until:
                time.sleep(_POLL_S)
                continue
            raise _unusable(path, error.strerror or str(error)) from error
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise _unusable(path, "it is no regular file")
        if (
            found.st_uid == os.geteuid() and not found.st_size and found.st_nlink == 1
        ):  # never another file of ours that somebody linked here
            os.fchmod(fd, _MODE)  # our umask keeps all files private
        return fd


def _unusable(path: Path, why: str) -> BackendUnreachable:
    return BackendUnreachable(
        f"the lock {path} for measurements cannot be opened", cause=why, fix=f"remove {path} while nobody measures, as its owner or as root"
    )


def _locked(fd: int, path: Path) -> bool:
    """True if it is ours now, and still the one that others find."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError as error:
        os.close(fd)
        raise _unusable(path, error.strerror or str(error)) from error


def _holder(fd: int) -> str:
    """``process 123``, if the kernel tells."""
    found = os.fstat(fd)
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5] == place and int(fields[4]) > 0:
                return f"process {fields[4]}"
    except OSError:  # no such file on this system
        return "another process"
    return "another process"
