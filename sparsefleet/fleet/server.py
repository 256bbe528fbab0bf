"""The supervisor's end of a fork server: connect to the node's, or start one; run a job; read what it says."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sparsefleet import one_file
from sparsefleet.fleet.bundle import import_path
from sparsefleet.spawn import module_command

_MODULE = "sparsefleet.fleet.forkserver"
_NO_PICKLES = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
"""For plugins that use MLflow themselves; the product loads no model with it."""
_OWN_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


class ServerLost(Exception):
    """The fork server ended: whatever it ran is gone."""


def _environment(threads: int, bundle: Path | None, places: Sequence[str]) -> dict[str, str]:
    """For a new fork server: one thread until a child says otherwise, so that a fork loses none; hashes that repeat; the sweep's own plugins."""
    count = str(threads)
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    path = import_path(bundle, places)
    inherited = {name: value for name, value in os.environ.items() if name != one_file.VARIABLE}  # those of the sweep are in the bundle
    return {**inherited, **dict.fromkeys(names, count), "PYTHONHASHSEED": "0", "PYTHONPATH": path, **_NO_PICKLES}


def _start(arguments: list[str], fds: tuple[int, ...], bundle: Path | None, places: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        module_command(_MODULE, *arguments),
        pass_fds=fds,
        env=_environment(1, bundle, places),
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C of the terminal is for the driver
    )


class NodeServer:
    """One fork server for all supervisors of this node: torch is imported once, and a supervisor that takes another's place is ready at once.

    It ends when this object is closed or its process dies, however it dies.

    Args:
        bundle: the folder with the sweep's own plugins.
    """

    def __init__(self, bundle: Path | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="sparsefleet-")
        self.path = str(Path(self._folder.name) / "fork")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self.path)
        listener.listen(64)
        alive_read, self._alive = os.pipe()
        with listener:
            self._process = _start(["listen", str(listener.fileno()), str(alive_read)], (listener.fileno(), alive_read), bundle, sys.path)
        os.close(alive_read)

    def close(self) -> None:
        """End it."""
        os.close(self._alive)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()


class ForkServer:
    """One connection, one job at a time.

    Args:
        path: the socket of a NodeServer; if it is not on this node or does not answer, an own server is started.
        bundle: the folder with the sweep's own plugins, for an own server.
        places: where that one looks for code; None: where this process does.
    """

    def __init__(self, path: str | None = None, bundle: Path | None = None, places: Sequence[str] | None = None) -> None:
        self._bundle, self._places = bundle, sys.path if places is None else places
        self._process: subprocess.Popen[bytes] | None = None
        self._conn = self._connect(path) or self._spawn()
        self._send(b"E", {name: os.environ[name] for name in _OWN_VARIABLES if name in os.environ})

    def _connect(self, path: str | None) -> Connection | None:
        if path is None:
            return None
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            link.connect(path)
        except OSError:  # another node, or the node's server is gone
            link.close()
            return None
        return Connection(link.detach())

    def _spawn(self) -> Connection:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = _start(["serve", str(theirs.fileno())], (theirs.fileno(),), self._bundle, self._places)
        return Connection(ours.detach())

    def _send(self, kind: bytes, body: Any) -> None:
        try:
            self._conn.send_bytes(kind + json.dumps(body).encode())
        except OSError as error:
            raise ServerLost(str(error)) from error

    def _receive(self) -> tuple[str, Any]:
        try:
            message = self._conn.recv_bytes()
        except (EOFError, OSError) as error:
            raise ServerLost("the fork server ended") from error
        return chr(message[0]), json.loads(message[1:])

    def describe(self) -> dict[str, Any]:
        """What a trial started here would run. Waits for the preload."""
        self._send(b"H", None)
        kind, body = self._receive()
        if kind != "h":
            raise ServerLost(f"unexpected answer {kind!r}")
        description: dict[str, Any] = body
        return description

    def run(self, job: dict[str, Any], beat_s: float) -> Iterator[tuple[str, Any]]:
        """What happens, as (kind, body), ``o`` last; ``("", None)`` after ``beat_s`` of silence.

        Raises:
            ServerLost: the server ended, and the job with it.
        """
        self._send(b"R", job)
        while True:
            if not self._conn.poll(beat_s):
                yield "", None
                continue
            kind, body = self._receive()
            yield kind, body
            if kind == "o":
                return

    def close(self) -> None:
        """End it and whatever it runs."""
        self._conn.close()
        if self._process:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=2)
            self._process.kill()
            self._process.wait()
