"""The few Linux calls that keep a trial's processes together and make them cheap: death signals, adoption, killing a tree, huge pages."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_MADV_COLLAPSE = 25
_HUGE = 2 << 20
SHARED = "/dev/shm/"


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


def die_with_parent(parent: int) -> None:
    """This process gets SIGKILL when ``parent`` ends; it ends now if that has happened already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Descendants whose parent dies become children of this process, however often they forked away."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def join_pages() -> None:
    """Move this process's heap into huge pages, so that a fork copies one entry per 2 MiB and not 512; nothing where the kernel cannot.

    What a child writes to is still copied in small pages.
    """
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    with suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            place, access, _, _, inode, *name = line.split()
            if access == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
                begin, end = (int(address, 16) for address in place.split("-"))
                begin, end = -(-begin // _HUGE) * _HUGE, end // _HUGE * _HUGE
                if begin < end:
                    libc.madvise(begin, end - begin, _MADV_COLLAPSE)  # a refusal changes nothing


def descendants(root: int) -> list[int]:
    """Process ids of all living descendants of ``root``, zombies left out."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
                if state != b"Z":
                    children.setdefault(int(parent), []).append(int(name))
    found: list[int] = []
    todo = [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def shared_files(pids: Iterable[int]) -> set[str]:
    """Paths of files in shared memory that these processes of ours have mapped or open, and that still have a name."""
    found: set[str] = set()
    for pid in pids:
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
            found |= {line[line.index(SHARED) :] for line in lines if SHARED in line}
        with suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    found.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return {path for path in found if path.startswith(SHARED) and not path.endswith(" (deleted)")}


def remove_unused(paths: Iterable[str], since: float) -> int:
    """Remove those of the paths in shared memory that were made after ``since`` (seconds of the epoch) and that no living process uses.

    Returns:
        How many there were.
    """
    named = set(paths)
    if not named:
        return 0
    used = shared_files(int(name) for name in os.listdir("/proc") if name.isdecimal())
    n_removed = 0
    for path in named - used:
        with suppress(OSError):
            if os.stat(path).st_ctime >= since:
                os.unlink(path)
                n_removed += 1
    return n_removed


def resident_mib(pids: Iterable[int]) -> float:
    """MiB that these processes hold together; pages that they share count in each."""
    n_pages = 0
    for pid in pids:
        with suppress(OSError, IndexError):
            n_pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return n_pages * resource.getpagesize() / (1 << 20)


def reap() -> bool:
    """Collect every ended child; True if living or ended children remain."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True


def kill_descendants(look: Callable[[set[int]], None] = lambda _: None) -> int:
    """SIGKILL every descendant of this process and collect them. Returns how many there were; ``look`` sees them stopped, before.

    All are stopped before any is killed: a process that forks as fast as it dies would otherwise win.
    """
    killed: set[int] = set()
    while reap():
        stopped: set[int] = set()
        while fresh := set(descendants(os.getpid())) - stopped:
            _signal_all(fresh, signal.SIGSTOP)
            stopped |= fresh
        look(stopped)
        _signal_all(stopped, signal.SIGKILL)
        killed |= stopped
        time.sleep(0.001)
    return len(killed)


def _signal_all(pids: set[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
