"""The fork server: a process with torch and the trial's code imported, from which each trial is forked in some milliseconds.

    python -m sparsefleet.fleet.forkserver serve FD          serves one supervisor on the connected socket FD
    python -m sparsefleet.fleet.forkserver listen FD ALIVE   forks a server for every supervisor that connects to the listening socket FD,
                                                             until the other end of ALIVE closes

Why not ``multiprocessing``'s: a trial's descendants must die with it (this process adopts them), the exit must be told apart from a
signal and both from a deadline, the supervisor's death must end the trial even if the trial holds the GIL, and nothing may be pickled.
A server runs one trial at a time. It only imports: no tensor operation happens before a fork, so there are no threads to lose.

Messages are bytes whose first one tells the kind; the rest is JSON: to the server ``R`` (run a job), ``H`` (who are you), ``E``
(environment); from it ``h``, ``s`` (started), ``p`` (progress), ``r`` (result), ``x`` (the body raised), ``b`` (work folder busy), ``o`` (over).
"""

from __future__ import annotations

import gc
import json
import math
import os
import selectors
import signal
import socket
import sys
import time
from contextlib import suppress
from importlib import import_module, metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sparsefleet.fleet import child
from sparsefleet.fleet.leftovers import SharedMemory
from sparsefleet.fleet.log_pipe import LogPipe
from sparsefleet.fleet.processes import adopt_orphans, descendants, join_pages, kill_descendants, resident_mib

PRELOAD = (
    "torch",
    "torch._dynamo",
    "torch.optim",
    "numpy.ctypeslib",
    "safetensors.torch",
    "PIL.BmpImagePlugin",
    "PIL.GifImagePlugin",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "PIL.PpmImagePlugin",
    "sparsefleet.trial.run",
    "sparsefleet.fleet.bodies",
)
"""What every trial imports sooner or later. torch.optim imports torch._dynamo at the first optimizer of a process: a second in every child
otherwise; Pillow its formats at the first picture."""
MAX_PROCESSES = 64
"""More living descendants of one trial than this are a fork bomb."""
_FROM_CHILD = (b"p", b"r", b"x", b"b")
_LOOK_EVERY_S = 0.25
_MAX_RESULT_BYTES = 1 << 28


def main(arguments: list[str]) -> None:
    """Preload, then serve until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
    mode, fd = arguments[0], int(arguments[1])
    preload()
    if mode == "listen":
        _listen(socket.socket(fileno=fd), int(arguments[2]))
    else:
        Server(Connection(fd)).serve()
    os._exit(0)  # nothing to clean up, and some libraries write a report to stderr when the interpreter ends


def preload() -> None:
    """Import what trials need; what is installed but broken fails in the trial that needs it, where it is recorded."""
    for name in PRELOAD:
        with suppress(Exception):
            import_module(name)
    _load_own_plugins()
    import_module("sparsefleet.measure.fingerprint").package_versions()
    _build_nothing()
    gc.collect()
    gc.freeze()  # the collector of a child leaves these objects alone, so their pages stay shared
    join_pages()


def _build_nothing() -> None:
    """What torch sets up at the first layer and the first optimizer of a process; on ``meta``, so nothing is computed."""
    import torch

    torch.optim.SGD(torch.nn.Linear(1, 1, device="meta").parameters()).zero_grad()


def _load_own_plugins() -> None:
    """The classes of sparsefleet's own plugins. Anyone else's are loaded in the child only: an import can change the process."""
    from sparsefleet.registry import classes_of, keep_catalog

    for entry in keep_catalog().entries:
        if entry.state == "ok" and entry.distribution == "sparsefleet":
            with suppress(Exception):
                classes_of(import_module(entry.module))


def _listen(listener: socket.socket, alive: int) -> None:
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(alive, selectors.EVENT_READ)
    while True:
        ready = {key.fileobj for key, _ in selector.select(timeout=5.0)}
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if alive in ready:  # nobody ever writes: it can only have closed
            return
        if listener in ready:
            accepted, _ = listener.accept()
            if os.fork() == 0:
                os.setsid()
                selector.close()
                listener.close()
                os.close(alive)
                Server(Connection(accepted.detach())).serve()
                os._exit(0)
            accepted.close()


class Server:
    """Runs the jobs of one supervisor, one after the other."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    def serve(self) -> None:
        """Until the supervisor's end closes."""
        adopt_orphans()
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_read, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        with suppress(EOFError, OSError):  # the supervisor is gone: so is the reason to be here
            while True:
                message = self._conn.recv_bytes()
                kind, body = message[:1], json.loads(message[1:] or b"null")
                if kind == b"R":
                    self._run(body, wake_read)
                elif kind == b"E":
                    os.environ.update(body)
                elif kind == b"H":
                    self._send(b"h", description())
        kill_descendants()

    def _send(self, kind: bytes, body: Any) -> None:
        self._conn.send_bytes(kind + json.dumps(body).encode())

    def _run(self, job: dict[str, Any], wake: int) -> None:
        read, write = os.pipe()
        log = LogPipe(Path(job["log"]))
        oom_before = _oom_kills()
        begun = time.monotonic()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for fd in (self._conn.fileno(), read, wake, log.read):
                os.close(fd)
            child.main(job, write, log.write, parent)
        os.close(write)
        log.parted()
        os.set_blocking(read, False)
        try:
            self._send(b"s", {"pid": pid})
            end = self._watch(pid, read, wake, log, job)
        finally:
            os.close(read)
            log.close()
        end["wall_s"] = time.monotonic() - begun
        end["memory_mib"] = job.get("memory_mib")
        end["oom_kill"] = _oom_kills() > oom_before
        self._send(b"o", end)

    def _watch(self, pid: int, read: int, wake: int, log: LogPipe, job: dict[str, Any]) -> dict[str, Any]:
        """Until the child has ended by itself or by our hand; forwards what it says. The child's descendants are gone afterwards.

        ``memory_mib`` of the job is what the trial's processes may hold together, beyond what they share with this one. A limit of the address
        space, where the child has one, is met earlier and ends in Python; on CUDA and over several processes there is only this one.
        """
        deadline = time.monotonic() + (job.get("timeout_s") or math.inf)
        most_mib, own_mib = job.get("memory_mib") or math.inf, resident_mib([os.getpid()])
        end: dict[str, Any] = {"timed_out": False, "n_processes": 0}
        shared = SharedMemory()
        inbox = _Inbox(self._conn, shared)
        look_at = time.monotonic() + _LOOK_EVERY_S
        with selectors.DefaultSelector() as selector:
            for fd in (self._conn.fileno(), read, wake, log.read):
                selector.register(fd, selectors.EVENT_READ)
            while True:
                now = time.monotonic()
                ready = {key.fd for key, _ in selector.select(max(0.0, min(deadline, look_at) - now))}
                if read in ready and not inbox.take(read):
                    selector.unregister(read)
                if log.read in ready and not log.take():
                    selector.unregister(log.read)
                if wake in ready:
                    with suppress(BlockingIOError):
                        os.read(wake, 4096)
                if self._conn.fileno() in ready:  # nobody writes while a job runs: the supervisor is gone
                    raise EOFError
                ended = os.wait4(pid, os.WNOHANG)
                if ended[0]:
                    break
                now = time.monotonic()
                if now >= look_at:
                    look_at = now + _LOOK_EVERY_S
                    below = descendants(os.getpid())
                    end["n_processes"] = len(below)
                    end["over_memory"] = resident_mib(below) - len(below) * own_mib > most_mib
                    shared.look(below)
                is_too_much = end["n_processes"] > MAX_PROCESSES or inbox.size > _MAX_RESULT_BYTES or end.get("over_memory")
                if now >= deadline or is_too_much:
                    end["timed_out"] = now >= deadline
                    shared.look([pid])
                    with suppress(ProcessLookupError):
                        os.killpg(pid, signal.SIGKILL)
                    os.kill(pid, signal.SIGKILL)  # it may not have become a group leader yet
                    ended = os.wait4(pid, 0)
                    end["killed"] = True
                    break
        end["n_leftover"] = kill_descendants(shared.look)
        inbox.take(read)
        end["n_shared"] = shared.remove()
        end["code"] = os.waitstatus_to_exitcode(ended[1])  # negative: minus the signal
        end["peak_mib"] = ended[2].ru_maxrss / 1024
        return end


class _Inbox:
    """Lines from the child: progress goes on at once, anything else when it is complete. A half line never blocks."""

    def __init__(self, conn: Connection, shared: SharedMemory) -> None:
        self._conn, self._shared = conn, shared
        self._rest = bytearray()

    @property
    def size(self) -> int:
        return len(self._rest)

    def take(self, fd: int) -> bool:
        """Forward what can be read now; False at the end of the pipe."""
        while True:
            try:
                chunk = os.read(fd, 1 << 16)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            self._rest += chunk
            *lines, rest = self._rest.split(b"\n")
            self._rest = bytearray(rest)
            for line in lines:
                if line[:1] in _FROM_CHILD:
                    self._conn.send_bytes(bytes(line))
                elif line[:1] == b"f":
                    self._shared.take(bytes(line[1:]))


def _oom_kills() -> int:
    """How many processes the kernel has killed for memory since it started; 0 where it does not say."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def description() -> dict[str, Any]:
    """What a trial or a measurement started here would run: code and plugins."""
    import sparsefleet
    from sparsefleet.measure.config import harness_digest
    from sparsefleet.registry import catalog
    from sparsefleet.trial.identity import core_digest

    entries = catalog().entries
    return {
        "node": socket.gethostname(),
        "pid": os.getpid(),
        "python": sys.version.split()[0],
        "sparsefleet": sparsefleet.__version__,
        "core": core_digest(),
        "harness": harness_digest(),
        "torch": metadata.version("torch"),
        "plugins": [[e.family, e.name, e.distribution, e.version, e.digest, e.libraries] for e in entries if e.state == "ok"],
        "unusable": [[e.distribution, e.version, e.state, e.reason] for e in entries if e.state != "ok"],
        "pickles": os.environ.get("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true").lower() != "false",
        "threads": len(os.listdir("/proc/self/task")),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
