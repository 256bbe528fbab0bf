"""``ui``."""

from __future__ import annotations

import os
import signal
import socket

import click

from sparsefleet.cli.session import Session, setting_option, verb
from sparsefleet.cli.sweeps import chosen, reading, sweep_argument
from sparsefleet.cli.talk import data, say
from sparsefleet.redact import without_user


@verb("ui", "ui", "ui quickstart-1a2b --port 5050", short="Open the runs in MLflow.")
@sweep_argument
@click.option("--port", type=click.IntRange(1, 65535), help="Port on this machine; default: a free one.")
@setting_option("mlflow_uri")
def ui(session: Session, sweep: str | None, port: int | None) -> None:
    """Open the runs in MLflow: starts its server for this machine alone, until Ctrl-C, and prints the address of the sweep.

    Where the tracking URI is a server already, only its address is printed. Without SWEEP the newest sweep is meant.
    """
    from sparsefleet.errors import UserError
    from sparsefleet.track import server, ui as mlflow_ui

    home, uri = session.made_home(), session.get("mlflow_uri")
    name = chosen(reading(session), sweep).sweep
    if uri.startswith(("http://", "https://")):
        data(mlflow_ui.link(without_user(uri), name, uri))
        return
    if uri != server.local_uri(home):
        raise UserError(
            f"MLflow's runs are not in this home but in {without_user(uri)}",
            fix="start MLflow's own server: mlflow server --backend-store-uri URI --host 127.0.0.1",
        )
    if not os.path.exists(home / "mlflow.db"):
        raise UserError(f"there are no runs in {home}", fix=f"sparsefleet resume {name}")
    if port is not None and _busy(port):
        raise UserError(f"port {port} is taken", fix="leave --port away: a free one is found")
    say("MLflow is starting, which takes some seconds …")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a server's end must not leave MLflow's processes behind
    process, address = mlflow_ui.start(home, port or 0)
    try:
        data(mlflow_ui.link(address, name, uri))
        say("Ctrl-C ends it")
        process.wait()
    except KeyboardInterrupt:
        say("stopped")
    finally:
        mlflow_ui.stop(process)


def _busy(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
