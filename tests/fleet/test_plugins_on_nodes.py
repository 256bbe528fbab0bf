"""Plugins on a cluster of two Ray nodes: local ones are brought along, others are compared before anything is queued."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsefleet.ledger import read_ledger

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

PRUNER = '''"""A pruner of a test."""
import os, socket
from sparsefleet import Pruner, hookimpl

class Mine(Pruner):
    """Magnitude."""
    name = "on-nodes"
    def score(self, conn):
        print("imported from", __file__)
        return conn.weight.abs()

@hookimpl
def sparsefleet_pruners():
    return [Mine]
'''
GRID = """
name: on-nodes
dataset: digits
model: {mlp: {hidden: [16]}}
optimizer: {sgd: {lr: 0.1}}
train: {epochs: 1}
seeds: 2
layer: csr
control_arms: []
measure: {level: none}
resources: {cpus: 1}
axes: {density: [0.2], method: [{pruner: on-nodes}]}
"""


def install(folder: Path, version: str, installer: str) -> Path:
    """The pruner as a distribution in a folder of its own."""
    info = folder / f"sf_nodes-{version}.dist-info"
    info.mkdir(parents=True)
    (folder / "sf_nodes.py").write_text(PRUNER + f"# {version}\n")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sf-nodes\nVersion: {version}\n")
    (info / "entry_points.txt").write_text("[sparsefleet]\nnodes = sf_nodes\n")
    (info / "INSTALLER").write_text(f"{installer}\n")
    return folder


@pytest.fixture
def two_nodes():
    """A function that starts a cluster: the first node with one search path, the second with another and more environment; its address."""
    from ray.cluster_utils import Cluster

    clusters = []

    def start(first: str, second: str, **more: str) -> str:
        cluster = Cluster()
        clusters.append(cluster)
        for number, environment in enumerate(({"PYTHONPATH": first}, {"PYTHONPATH": second, **more})):
            with pytest.MonkeyPatch.context() as patch:
                for name, value in environment.items():
                    patch.setenv(name, value)
                cluster.add_node(num_cpus=1, include_dashboard=False, node_name=f"node-{number}", object_store_memory=100 << 20)
        return cluster.address

    yield start
    for cluster in clusters:
        cluster.shutdown()


def submit(tmp_path: Path, address: str, path: str, *more: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "grid.yaml").write_text(GRID)
    command = [sys.executable, "-m", "sparsefleet.cli", "submit", "grid", "grid.yaml", "--address", address, "--json", *more]
    env = {**os.environ, "PYTHONPATH": path, "SPARSEFLEET_PICTURES": "off"}
    return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400, check=False)


def test_a_local_plugin_runs_on_a_node_that_does_not_have_it(tmp_path, two_nodes):
    here = str(install(tmp_path / "here", "1.0", ""))
    done = submit(tmp_path, two_nodes("", ""), here)
    assert done.returncode == 0, done.stderr
    row = next(row for row in json.loads(done.stdout)["rows"] if row["method"].startswith("on-nodes"))
    assert (row["n_ok"], row["n_failed"]) == (2, 0)
    ledger = read_ledger(Path(os.environ["SPARSEFLEET_HOME"]))
    used = [p for trial in ledger.trials(json.loads(done.stdout)["sweep"]) for p in trial.record["plugins"] if p["name"] == "on-nodes"]
    assert [(p["distribution"], p["version"]) for p in used] == [("sf-nodes", "1.0")] * 2
    logs = "".join(log.read_text() for log in (Path(os.environ["SPARSEFLEET_HOME"]) / "logs").rglob("*.log"))
    assert "/bundles/" in logs
    assert str(here) not in logs


def test_other_versions_are_told_in_a_table_before_anything_is_queued(tmp_path, two_nodes):
    here, there = (str(install(tmp_path / name, version, "pip")) for name, version in (("here", "1.0"), ("there", "1.1")))
    done = submit(tmp_path, two_nodes(here, there), here)
    assert done.returncode == 3, done.stderr
    assert "node-1 runs other code than the sweep was submitted with: pruner/on-nodes" in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.split()[:1] == ["pruner/on-nodes"]]
    assert "sf-nodes 1.0" in line
    assert "sf-nodes 1.1" in line
    (sweep,) = read_ledger(Path(os.environ["SPARSEFLEET_HOME"])).sweeps()
    assert sweep.counts["PENDING"] == sweep.counts["total"]


def test_a_plugin_that_a_node_does_not_have_is_named(tmp_path, two_nodes):
    here = str(install(tmp_path / "here", "1.0", "pip"))
    done = submit(tmp_path, two_nodes("", ""), here)
    assert done.returncode == 3, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.split()[:1] == ["pruner/on-nodes"]]
    assert line.endswith("not there")
    assert done.stderr.splitlines()[-3].split()[:3] == ["what", "submitted", "node-1"]  # the driver's own node runs what the driver has


def test_a_node_may_refuse_what_its_allow_list_does_not_name(tmp_path, two_nodes):
    (tmp_path / "allow.toml").write_text("")
    here = str(install(tmp_path / "here", "1.0", ""))  # it is brought along, and still not imported there
    done = submit(tmp_path, two_nodes("", "", SPARSEFLEET_ALLOW_LIST=str(tmp_path / "allow.toml")), here)
    assert done.returncode == 3, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.split()[:1] == ["pruner/on-nodes"]]
    assert f"sf-nodes 1.0 is unlisted: sf-nodes is not in the allow-list {tmp_path / 'allow.toml'}" in line
    (sweep,) = read_ledger(Path(os.environ["SPARSEFLEET_HOME"])).sweeps()
    assert sweep.counts["PENDING"] == sweep.counts["total"]


def test_what_was_submitted_is_what_runs_whatever_is_edited_meanwhile(tmp_path, monkeypatch):
    """A one-file plugin, here without a cluster: edited after the sweep was entered, and named no more when it is resumed."""
    from sparsefleet.fleet.enqueue import enqueue
    from sparsefleet.grid.load import load_grid
    from sparsefleet.registry import catalog

    home = Path(os.environ["SPARSEFLEET_HOME"])
    file = tmp_path / "edited.py"
    file.write_text(PRUNER)
    (tmp_path / "grid.yaml").write_text(GRID)
    monkeypatch.setenv("SPARSEFLEET_PLUGINS", str(file))
    monkeypatch.setattr(sys, "path", list(sys.path))
    plugins = catalog()
    sweep = enqueue(load_grid(str(tmp_path / "grid.yaml"), catalog=plugins), plugins, home, tmp_path / "data")
    version = plugins.get("pruner", "on-nodes").version
    file.write_text("raise SystemExit('edited')")
    monkeypatch.delenv("SPARSEFLEET_PLUGINS")
    env = {**os.environ, "SPARSEFLEET_PICTURES": "off"}
    command = [sys.executable, "-m", "sparsefleet.cli", "resume", sweep, "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    trials = [trial.record for trial in read_ledger(home).trials(sweep)]
    used = [(p["distribution"], p["version"]) for record in trials for p in record["plugins"] if p["name"] == "on-nodes"]
    assert used == [("edited.py", version)] * 2
