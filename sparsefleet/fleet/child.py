"""The process of one trial, right after the fork: alone in its session, with its own log, limits and threads."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from sparsefleet.fleet.processes import die_with_parent, shared_files
from sparsefleet.redact import redacted, redacted_json
from sparsefleet.space import means_no_space
from sparsefleet.trial.record import WITHOUT_SECRETS

_PROGRESS_EVERY_S = 0.25
_BUSY_WAIT_S = 5.0
_TRACE_LINES = 20
_MIB = 1 << 20


def main(job: dict[str, Any], out: int, log: int, parent: int) -> NoReturn:
    """Run the job's body and tell the result on ``out``; never returns. Exit 0 without a result means that something else ended it."""
    code = 1
    try:
        _separate(parent)
        _redirect(log)
        own_pid = os.getpid()
        message = _body(job, _Outlet(out))
        if os.getpid() == own_pid:  # a body that forked must not answer twice
            _write(out, message)
            code = 0
            _tell_shared(out)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
    except BaseException as error:  # noqa: BLE001 - whatever it is, it ends this process only
        if means_no_space(error):
            _write(
                out,
                b"x"
                + json.dumps({"type": type(error).__name__, "message": str(error), "trace": "", "oom": False, "no_space": True}).encode(),
            )
        traceback.print_exc()
    finally:
        _flush()
        os._exit(code & 0xFF)


def _separate(parent: int) -> None:
    os.setsid()
    die_with_parent(parent)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _redirect(fd: int) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (fd, 1), (fd, 2)):
        os.dup2(source, target)
    os.close(fd)
    os.close(null)
    for name, number in (("stdout", 1), ("stderr", 2)):
        setattr(sys, name, open(number, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False))  # noqa: SIM115


class _Outlet:
    """Sends progress, at most a few times a second."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._next = 0.0

    def __call__(self, values: dict[str, Any]) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _PROGRESS_EVERY_S
            _write(self._fd, b"p" + json.dumps(values).encode())


def _body(job: dict[str, Any], progress: Callable[[dict[str, Any]], None]) -> bytes:
    lock = _enter(Path(job["workdir"]))
    if lock is None:
        return b"b{}"
    if job.get("limits_address_space", True):
        _limit_memory(job.get("memory_mib"))
    module, _, function = job["body"].partition(":")
    try:
        answer = redacted_json(getattr(import_module(module), function)(job, progress), leave=WITHOUT_SECRETS)
        return b"r" + json.dumps(answer, allow_nan=False).encode()
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - a plugin's KeyboardInterrupt is the plugin's
        out_of_memory = isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__
        return (
            b"x"
            + json.dumps(
                {
                    "type": type(error).__name__,
                    "message": _text(error),
                    "trace": _trace(),
                    "oom": out_of_memory,
                    "no_space": means_no_space(error),
                }
            ).encode()
        )


def _enter(workdir: Path) -> int | None:
    """The right to write into the work folder, which a dying attempt of the same trial may hold for a moment more."""
    workdir.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(workdir / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _BUSY_WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.05)


def _limit_memory(memory_mib: float | None) -> None:
    """Address space beyond what the preloaded code maps already, so that an allocation fails in Python and not the machine."""
    if memory_mib:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = mapped + int(memory_mib * _MIB)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _text(error: BaseException) -> str:
    try:
        return redacted(str(error))[:4000]
    except BaseException as second:  # noqa: BLE001 - __str__ is the plugin's too
        return f"(its text raised {type(second).__name__})"


def _trace() -> str:
    try:
        return redacted("\n".join(traceback.format_exc().splitlines()[-_TRACE_LINES:]))
    except BaseException as error:  # noqa: BLE001 - formatting calls the plugin's __str__
        return f"(its trace raised {type(error).__name__})"


def _write(fd: int, message: bytes) -> None:
    view = memoryview(message + b"\n")
    while view:
        view = view[os.write(fd, view) :]


def _tell_shared(out: int) -> None:
    """Names in shared memory that only this process knows: once it has ended nobody can tell whose they were."""
    with suppress(BaseException):  # a plugin may have left nothing to do this with; its result is told already
        _write(out, b"f" + json.dumps(sorted(shared_files([os.getpid()]))).encode())


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # noqa: BLE001 - a plugin may have closed or replaced it
            continue
    ctypes.CDLL(None).fflush(None)
