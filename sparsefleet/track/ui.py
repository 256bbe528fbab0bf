"""Show MLflow's UI for a home, on this machine only, and link to a sweep."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from sparsefleet.errors import BackendUnreachable, UserError
from sparsefleet.track import server
from sparsefleet.track.read import find_sweep

_HOST = "127.0.0.1"
_START_S = 60.0
_STOP_S = 8.0


def command(home: Path, port: int) -> list[str]:
    """The command line of an MLflow server for the home's own database, on the loopback interface, with one worker.

    One, because with the default four each call waits 44 ms for a delayed acknowledgement.
    """
    artifacts = (home.absolute() / "mlartifacts").as_uri()
    return [
        *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
        *("--backend-store-uri", server.local_uri(home)),
        *("--default-artifact-root", artifacts, "--artifacts-destination", artifacts),
        *("--host", _HOST, "--port", str(port), "--allowed-hosts", f"{_HOST}:{port},localhost:{port}"),
    ]


def start(home: Path, port: int = 0) -> tuple[subprocess.Popen[bytes], str]:
    """A running server and its address; port 0 takes a free one. Its output goes to ``ui.log`` of the home.

    Raises:
        UserError: nothing was uploaded yet, or the port is taken.
        BackendUnreachable: it did not answer within a minute, or ended.
    """
    server.connect(server.local_uri(home))  # it exists: the server's processes must not be the first to touch it
    port = _port(port)
    environment = {**server.environment(), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    output = os.open(home / "ui.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with os.fdopen(output, "wb") as out:
        process = subprocess.Popen(
            command(home, port),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=environment,
            cwd=home,
            start_new_session=True,
            umask=0o077,
        )
    address = f"http://{_HOST}:{port}"
    try:
        wait_ready(address, process)
    except BaseException:
        stop(process)
        raise
    return process, address


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a server of ``start`` with its workers: it is asked, and killed if it waits for a connection that nobody closes."""
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the leader is not reaped yet, so the group is still its own
        process.wait()


def wait_ready(address: str, process: subprocess.Popen[bytes], timeout_s: float = _START_S) -> None:
    """Return when the server answers.

    Raises:
        BackendUnreachable: it does not, or its process has ended.
    """
    end = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise BackendUnreachable(f"the MLflow server at {address} did not start", fix="read ui.log in the home")


def link(address: str, sweep: str, uri: str, home_id: str | None = None) -> str:
    """Deep link to a sweep's run in the UI at ``address``.

    Raises:
        UserError: MLflow holds no such sweep.
    """
    run = find_sweep(server.connect(uri), sweep, home_id)
    return f"{address.rstrip('/')}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def _port(wanted: int) -> int:
    """``wanted`` if nothing listens there, or a free one for 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, wanted))
        except OSError as error:
            raise UserError(
                f"port {wanted} of {_HOST} is taken", cause=str(error), fix="choose another one, or 0 for any that is free"
            ) from error
        port: int = probe.getsockname()[1]
        return port
