"""``doctor --cluster`` at a cluster that anybody may use: started by ``ray start`` without a token, with its dashboard on every address."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from ray_head import free_port, started_head

LIMIT_S = 120.0


def outside_address():
    """One of this machine's that is not loopback; None if it has none."""
    every = (one.address for name in psutil.net_if_addrs().values() for one in name if one.family == socket.AF_INET)
    return next((address for address in every if not address.startswith("127.")), None)


@pytest.fixture
def place():
    folder = Path(tempfile.mkdtemp(prefix="sf-", dir="/tmp"))  # Ray's sockets need a short path
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def environment(place):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SPARSEFLEET_", "MLFLOW_", "RAY_"))}
    (place / "token").write_text("f0e1d2c3b4a5968778695a4b3c2d1e0f" * 2)
    (place / "token").chmod(0o640)
    own = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN_PATH": str(place / "token"), "RAY_USAGE_STATS_ENABLED": "0"}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
    return {**kept, **own, "HOME": str(place), "PATH": path, "SPARSEFLEET_CACHE": os.environ["SPARSEFLEET_CACHE"]}


@pytest.fixture
def address(place, environment):
    """Of an open cluster, as others reach it."""
    pytest.importorskip("aiohttp_cors", reason="ray without [default] has no dashboard")
    host, port = outside_address(), free_port()
    if host is None:
        pytest.skip("this machine has no address but loopback")
    options = {
        "node-ip-address": host,
        "port": port,
        "dashboard-host": "0.0.0.0",
        "dashboard-port": free_port(),
        "temp-dir": place / "ray",
        "num-cpus": 1,
        "object-store-memory": 100 << 20,
        "ray-client-server-port": free_port(),
        "dashboard-agent-listen-port": free_port(),
    }
    with started_head(options, environment, place, LIMIT_S):
        yield f"{host}:{port}"


@pytest.mark.ray
@pytest.mark.slow
def test_every_open_door_of_a_cluster_is_named(place, environment, address):
    command = [sys.executable, "-m", "sparsefleet.cli", "doctor", "--cluster", "--address", address, "--json"]
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 3, done.stderr
    checks = {check["what"]: check for check in json.loads(done.stdout)["checks"]}
    assert {what for what, check in checks.items() if check["state"] == "fail"} >= {"token", "token file", "dashboard"}
    assert f"which others reach at {address.partition(':')[0]}" in checks["token"]["found"]
    assert f"here: {place / 'token'} has mode 0640" in checks["token file"]["found"]
    assert "answers without a token" in checks["dashboard"]["found"]
    assert all("CVE-2023-48022" in checks[what]["fix"] for what in ("token", "dashboard"))
    assert (place / "token").stat().st_mode & 0o077 == 0  # closed by joining
    (pickles,) = (check for what, check in checks.items() if what.endswith("pickles"))
    assert (pickles["state"], pickles["found"]) == ("ok", "MLflow loads none")
