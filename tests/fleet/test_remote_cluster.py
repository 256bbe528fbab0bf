"""A sweep is submitted to a cluster from a machine that is then gone; another asks how it went. A real head, by ``ray start``, with a token."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest
from ray_head import free_port, started_head

GRID = """
name: far
dataset: digits
model: {mlp: {hidden: [32]}}
optimizer: {sgd: {lr: 0.1}}
train: {epochs: 3, batch_size: 64}
seeds: 2
control_arms: []
axes:
  density: [0.2]
  method: [{pruner: sent-along, schedule: one-shot}]
measure: {level: none}
"""
PLUGIN = '''
from sparsefleet import Pruner, hookimpl

class Sent(Pruner):
    """Small squares go."""

    name = "sent-along"

    def score(self, conn):
        return conn.weight ** 2

@hookimpl
def sparsefleet_pruners():
    return [Sent]
'''
TOKEN = "f0e1d2c3b4a5968778695a4b3c2d1e0ff0e1d2c3b4a5968778695a4b3c2d1e0f"
LIMIT_S = 240.0


def environment(home, **more):
    """Of one machine: its user's folder, the token, and no settings but these."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SPARSEFLEET_", "MLFLOW_", "RAY_"))}
    (home / "token").write_text(TOKEN)
    path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
    ray = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "120",
    }
    return {**kept, **ray, "HOME": str(home), "PATH": path, "SPARSEFLEET_CACHE": os.environ["SPARSEFLEET_CACHE"], **more}


@pytest.fixture
def cluster():
    """(URL of the dashboard, home of the sweeps); the head ends with its foreground process."""
    pytest.importorskip("aiohttp_cors", reason="ray without [default] has no job server")
    place = Path(tempfile.mkdtemp(prefix="sf-", dir="/tmp"))  # Ray's sockets need a short path
    port, machine = free_port(), place / "head"
    machine.mkdir()
    options = {
        "port": free_port(),
        "dashboard-host": "127.0.0.1",
        "dashboard-port": port,
        "temp-dir": place / "ray",
        "num-cpus": 2,
        "object-store-memory": 128 << 20,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "ray-client-server-port": free_port(),
        "dashboard-agent-listen-port": free_port(),
    }
    env = environment(machine, SPARSEFLEET_HOME=str(machine / "sweeps"), SPARSEFLEET_PICTURES="off")
    try:
        with started_head(options, env, machine, LIMIT_S):
            yield f"http://127.0.0.1:{port}", machine / "sweeps"
    finally:
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def laptop(cluster, tmp_path):
    """A function that runs ``sparsefleet`` on another machine than the head: another user's folder, another working folder."""
    env = environment(tmp_path, SPARSEFLEET_RAY_ADDRESS=cluster[0])

    def run(*words, **more):
        command = [sys.executable, "-m", "sparsefleet.cli", *words]
        return subprocess.run(command, env={**env, **more}, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S)

    run.env, run.folder = env, tmp_path
    return run


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_outlives_the_machine_that_submitted_it_and_is_read_from_any_other(cluster, laptop):
    (laptop.folder / "far.yaml").write_text(GRID)
    (laptop.folder / "sent.py").write_text(PLUGIN)
    submit = [sys.executable, "-m", "sparsefleet.cli", "submit", "grid", "far.yaml", "--plugin", "sent.py"]
    said = laptop.folder / "said"
    with said.open("wb") as log:
        client = subprocess.Popen(submit, env=laptop.env, cwd=laptop.folder, stdout=log, stderr=log)
    until = time.monotonic() + LIMIT_S
    while "runs on the cluster as job" not in said.read_text():
        assert client.poll() is None and time.monotonic() < until, said.read_text()
        time.sleep(0.1)
    client.kill()
    client.wait()

    second = laptop("submit", "grid", "far.yaml", "--plugin", "sent.py", "--detach")
    assert second.returncode in (75, 0), second.stderr  # 0 if the sweep was done by then
    while True:
        asked = laptop("status", "--json")
        assert asked.returncode == 0, asked.stderr
        (sweep,) = json.loads(asked.stdout)["sweeps"]
        if sweep["state"] not in ("RUNNING", "MEASURING"):
            break
        assert time.monotonic() < until, asked.stdout
    assert (sweep["state"], sweep["counts"]["SUCCEEDED"], sweep["counts"]["total"]) == ("DONE", 4, 4)

    table = laptop("compare", sweep["sweep"], "--json")
    assert table.returncode == 0, table.stderr
    assert "sent-along" in table.stdout
    assert not (laptop.folder / ".sparsefleet").exists()
    assert (cluster[1] / "ledger.db").is_file()
    assert "such" in laptop("status", "no-such-sweep").stderr

    request = urllib.request.Request(f"{cluster[0]}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request) as answer:
        listed = answer.read().decode()
    assert f"sparsefleet-{sweep['sweep']}-1" in listed
    assert TOKEN not in listed
    refused = laptop("status", RAY_AUTH_MODE="disabled")
    assert (refused.returncode, refused.stdout) == (4, "")
