"""The few Linux calls that keep a trial's processes together and make them cheap: death signals, adoption, killing a tree, huge pages."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_MADV_COLLAPSE = 25
_HUGE = 2 << 20


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


def reap() -> bool:
    """Collect every ended child; True if living or ended children remain."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True


def kill_descendants() -> int:
    """SIGKILL every descendant of this process and collect them. Returns how many there were.

    All are stopped before any is killed: a process that forks as fast as it dies would otherwise win.
    """
    killed: set[int] = set()
    while reap():
        stopped: set[int] = set()
        while fresh := set(descendants(os.getpid())) - stopped:
            _signal_all(fresh, signal.SIGSTOP)
            stopped |= fresh
        _signal_all(stopped, signal.SIGKILL)
        killed |= stopped
        time.sleep(0.001)
    return len(killed)


def _signal_all(pids: set[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
