"""Real servers on the loopback interface, each with folders and ports of its own: PostgreSQL, S3, MLflow on both, and a Ray cluster."""

from __future__ import annotations

import getpass
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
BUCKET = "sparsefleet"
_START_S = 200.0


def free_port() -> int:
    """A port that nothing listens on, below the range from which the kernel gives ports to outgoing connections."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)):
                return port
    raise OSError("no free port found")


def until(true: Callable[[], bool], what: str, limit_s: float = _START_S) -> None:
    """Return when it is true; fails the test that asked if it does not become so."""
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def stop(process: subprocess.Popen[Any], signum: int = signal.SIGTERM) -> None:
    """Ends a process that leads a session, with everything that it started."""
    import psutil

    try:
        below = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        below = []
    process.send_signal(signum)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in below:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(below, timeout=10)


# PostgreSQL


@dataclass(frozen=True)
class Postgres:
    """A cluster of databases with a user that has a password."""

    port: int
    password: str

    def uri(self, name: str) -> str:
        """Of the database ``name``, as ``MLFLOW_TRACKING_URI`` takes it."""
        return f"postgresql://fleet:{self.password}@{HOST}:{self.port}/{name}"

    def create(self, name: str, template: str = "template0") -> str:
        """A new database; its URI."""
        import psycopg

        with psycopg.connect(self.uri("postgres"), autocommit=True) as db:
            db.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.uri(name)


def postgres_programs() -> Path | None:
    """The folder of ``initdb`` and ``postgres``, where Debian's package or a search path has one."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists() and (place / "postgres").exists()), None)


@contextmanager
def postgres(programs: Path) -> Iterator[Postgres]:
    """A PostgreSQL of our own; PostgreSQL refuses to run as root, so root runs it as the package's user."""
    user = "postgres" if getpass.getuser() == "root" else getpass.getuser()
    identity: dict[str, Any] = {}
    if user != getpass.getuser():
        entry = pwd.getpwnam(user)
        identity = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    folder = Path(tempfile.mkdtemp(prefix="sparsefleet-pg-"))  # not pytest's: those are closed to other users
    password = secrets.token_hex(12)
    (folder / "password").write_text(password)
    if identity:
        for path in (folder, folder / "password"):
            os.chown(path, identity["user"], identity["group"])
    port = free_port()
    made = [str(programs / "initdb"), "-D", str(folder / "data"), "-U", "fleet", "--auth=scram-sha-256", "-E", "UTF8", "--no-sync"]
    served = [str(programs / "postgres"), "-D", str(folder / "data"), "-p", str(port), "-c", f"listen_addresses={HOST}"]
    served += ["-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]  # the test ends before a power cut would matter
    subprocess.run([*made, f"--pwfile={folder / 'password'}"], cwd="/", check=True, capture_output=True, **identity)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(served, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **identity)
        try:
            running = Postgres(port, password)
            until(lambda: process.poll() is not None or _answers(running), "PostgreSQL does not start")
            log.seek(0)
            assert process.poll() is None, log.read().decode()
            yield running
        finally:
            stop(process, signal.SIGINT)  # fast shutdown: it does not wait for clients
            shutil.rmtree(folder)


def _answers(server: Postgres) -> bool:
    import psycopg

    try:
        with psycopg.connect(server.uri("postgres"), connect_timeout=2):
            return True
    except psycopg.OperationalError:
        return False


# S3


@dataclass(frozen=True)
class ObjectStore:
    """An S3 with one bucket."""

    address: str
    process: subprocess.Popen[bytes]
    secret: str

    @property
    def environment(self) -> dict[str, str]:
        """See ``s3_environment``."""
        return s3_environment(self.address, self.secret)


def s3_environment(address: str, secret: str) -> dict[str, str]:
    """What every process that reads or writes the S3 needs; nothing of the user's own account is looked at."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": f"id-{secret[:12]}",
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


@contextmanager
def object_store(folder: Path, port: int | None = None) -> Iterator[ObjectStore]:
    """moto's S3 as a process of its own, at ``port`` or where there is room."""
    port = port or free_port()
    with (folder / "s3.log").open("wb") as log:
        command = [sys.executable, "-c", "from moto.server import main; main()", "-H", HOST, "-p", str(port)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    store = ObjectStore(f"http://{HOST}:{port}", process, secrets.token_hex(16))
    try:
        until(lambda: process.poll() is not None or _http(store.address), "S3 does not start")
        import boto3

        keys = {"aws_access_key_id": "sparsefleet", "aws_secret_access_key": "sparsefleet", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=store.address, **keys).create_bucket(Bucket=BUCKET)
        yield store
    finally:
        stop(process)


def _http(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


# MLflow


@contextmanager
def mlflow_server(folder: Path, database: str, environment: Mapping[str, str]) -> Iterator[str]:
    """MLflow as a team runs it: its rows in ``database``, artifacts through it in S3; its address."""
    from sparsefleet.track import server

    port = free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--backend-store-uri", database),
        *("--serve-artifacts", "--artifacts-destination", f"s3://{BUCKET}/mlflow"),
        *("--host", HOST, "--port", str(port), "--allowed-hosts", f"{HOST}:{port}"),
    ]
    env = {**server.environment(), **environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "mlflow.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, cwd=folder, start_new_session=True)
    address = f"http://{HOST}:{port}"
    try:
        until(lambda: process.poll() is not None or _http(f"{address}/health"), "MLflow does not start")
        assert process.poll() is None, (folder / "mlflow.log").read_text()
        yield address
    finally:
        stop(process)


# Ray


@dataclass(frozen=True)
class RayCluster:
    """Two nodes of one CPU each, called ``head`` and ``node``."""

    address: str
    token: str
    scratch: Path
    """The nodes' folder for temporary files."""

    @property
    def environment(self) -> dict[str, str]:
        """What a driver needs to be let in."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_USAGE_STATS_ENABLED": "0"}


@contextmanager
def ray_cluster(folder: Path, hidden: Path, environment: Mapping[str, str]) -> Iterator[RayCluster]:
    """Two nodes by ``ray start`` with token authentication; the second has an empty folder at ``hidden``."""
    token, port = secrets.token_hex(32), free_port()
    scratch = Path(tempfile.mkdtemp(prefix="sf-ray-", dir="/tmp"))  # short: sockets lie in it
    cluster = RayCluster(f"{HOST}:{port}", token, scratch)
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats", f"--node-ip-address={HOST}"]
    ray += ["--object-store-memory=134217728", f"--temp-dir={scratch}", "--min-worker-port=0", "--max-worker-port=0", "--num-cpus=1"]
    own = [f"--port={port}", f"--ray-client-server-port={free_port()}", "--include-dashboard=false"]
    env = {**os.environ, **environment, **cluster.environment, "TMPDIR": str(scratch)}
    started = []
    try:
        for name, command in (
            ("head", [*ray, "--head", "--node-name=head", *own]),
            ("node", [*_without(hidden), *ray, "--node-name=node", f"--address={cluster.address}"]),
        ):
            with (folder / f"ray-{name}.log").open("wb") as log:
                started.append(
                    subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, cwd=folder, start_new_session=True)
                )
            said = folder / f"ray-{name}.log"
            until(lambda: started[-1].poll() is not None or "--block" in said.read_text(), "Ray does not start")  # noqa: B023  called at once
            assert started[-1].poll() is None, said.read_text()
        yield cluster
    finally:
        for process in reversed(started):
            stop(process)
        shutil.rmtree(scratch, ignore_errors=True)


def _without(hidden: Path) -> list[str]:
    """The beginning of a command that sees nothing in ``hidden``, as on another machine."""
    return ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size=1m none {hidden} && exec "$@"', "sh"]


def can_hide() -> bool:
    """Whether this process may give another one a file system of its own."""
    tried = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /mnt"]
    return shutil.which("unshare") is not None and subprocess.run(tried, capture_output=True, check=False).returncode == 0
