"""Sweeps by the program on real back ends: two Ray nodes, files in S3, MLflow's server on PostgreSQL; and an S3 that is away all the while."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import backend_servers as servers
import pytest

from benchmarks.chaos.stored import Stored
from sparsefleet.ledger import TrialRow, read_ledger
from sparsefleet.ledger.spool import FOLDER, pending

GRID = """\
name: {name}
dataset: digits
model: {{mlp: {{hidden: [32]}}}}
optimizer: {{sgd: {{lr: 0.1}}}}
train: {{epochs: 3, batch_size: 32}}
seeds: {seeds}
control_arms: []
axes:
  density: [0.2]
  layer: [csr]
  method: [{{rewirer: set}}]
measure: {{level: none}}
resources: {{cpus: 1}}
"""
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Home:
    """A home, and how the program is called there."""

    path: Path
    environment: dict[str, str]

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sparsefleet.cli", *arguments]
        return subprocess.run(command, env=self.environment, cwd=self.path, capture_output=True, text=True, timeout=300, check=False)

    def submitted(self, name: str, n_seeds: int, *flags: str) -> subprocess.CompletedProcess[str]:
        (self.path / f"{name}.yaml").write_text(GRID.format(name=name, seeds=n_seeds))
        done = self.call("submit", "grid", f"{name}.yaml", *flags)
        assert done.returncode == 0, done.stderr
        return done

    @property
    def rows(self) -> list[TrialRow]:
        with read_ledger(self.path) as ledger:
            (sweep,) = ledger.sweeps()
            return list(ledger.trials(sweep.sweep))

    def digests(self) -> set[str]:
        """Of all files of all records."""
        return {ref["sha256"] for row in self.rows for ref in (row.record or {})["artifacts"]}

    def items_waiting(self) -> int:
        with read_ledger(self.path) as ledger:
            return ledger.outbox_size()


def home_at(path: Path, environment: dict[str, str], artifacts: str, mlflow: str) -> Home:
    path.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SPARSEFLEET_", "MLFLOW_", "AWS_"))}
    own = {
        "SPARSEFLEET_CACHE": os.environ["SPARSEFLEET_TEST_CACHE"],
        "SPARSEFLEET_HOME": str(path),
        "SPARSEFLEET_ARTIFACTS": f"s3://{servers.BUCKET}/{artifacts}",
        "SPARSEFLEET_PICTURES": "off",
        "MLFLOW_TRACKING_URI": mlflow,
    }
    return Home(path, {**kept, **environment, **own})


def stored(s3: servers.ObjectStore, prefix: str) -> dict[str, bytes]:
    """What lies in S3 below a prefix."""
    import boto3

    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
    bucket = boto3.resource("s3", endpoint_url=s3.address, **keys).Bucket(servers.BUCKET)
    return {item.key.rpartition("/")[2]: item.get()["Body"].read() for item in bucket.objects.filter(Prefix=f"{prefix}/")}


@pytest.fixture(scope="module")
def fleet(shared: Path, ray: servers.RayCluster, s3: servers.ObjectStore, mlflow_uri: str) -> Home:
    """A home in which a sweep has just ended on the cluster."""
    home = home_at(shared / "home", {**ray.environment, **s3.environment}, "artifacts", mlflow_uri)
    home.submitted("real", 4, "--address", ray.address)
    return home


def test_every_trial_is_committed_once_on_either_node_and_its_files_are_in_s3(
    fleet: Home, ray: servers.RayCluster, s3: servers.ObjectStore
) -> None:
    attempts = [attempt for row in fleet.rows for attempt in row.attempts]
    assert [row.state for row in fleet.rows] == ["SUCCEEDED"] * 8
    assert [attempt["end"] for attempt in attempts] == ["SUCCEEDED"] * 8
    assert {attempt["node"] for attempt in attempts} == {"head", "node"}
    assert list(ray.scratch.glob("sparsefleet-*/*/logs")), "the second node saw the home"
    found = stored(s3, "artifacts")
    assert set(found) >= fleet.digests()
    assert all(hashlib.sha256(data).hexdigest() == name for name, data in found.items())
    assert not (fleet.path / "artifacts").exists()
    assert not pending(fleet.path / FOLDER)


def test_each_trial_is_one_finished_run_in_postgresql_with_the_ledgers_values(fleet: Home, postgres: servers.Postgres) -> None:
    import psycopg

    servers.until(lambda: fleet.items_waiting() == 0, "not all of it reached MLflow")
    asked = """SELECT t.value, r.status FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid AND t.key = 'sparsefleet.trial_key'
        WHERE r.lifecycle_stage = 'active'"""
    with psycopg.connect(postgres.uri("served")) as db:
        runs = db.execute(asked).fetchall()
    keys = {row.key for row in fleet.rows}
    assert sorted(run for run in runs if run[0] in keys) == sorted((key, "FINISHED") for key in keys)
    own, theirs = (fleet.call("compare", *flags, "--json") for flags in ((), ("--from", "mlflow")))
    assert (own.returncode, theirs.returncode) == (0, 0), own.stderr + theirs.stderr
    rows = json.loads(own.stdout)["rows"]
    assert [row["n_ok"] for row in rows] == [4] * 2
    assert json.loads(theirs.stdout)["rows"] == rows


def test_no_token_and_no_key_is_written_down(fleet: Home, ray: servers.RayCluster, s3: servers.ObjectStore) -> None:
    with closing(sqlite3.connect(fleet.path / "ledger.db")) as db:
        packed = {f"ledger {number}": text.encode() for number, text in enumerate(Stored(db).every_text())}
    sent = {f"s3 {name}": data for name, data in stored(s3, "artifacts").items()}
    assert packed
    assert sent
    kept = {str(path): path.read_bytes() for path in fleet.path.rglob("*") if path.is_file()}
    for place, data in {**kept, **packed, **sent}.items():
        assert ray.token.encode() not in data, place
        assert s3.secret.encode() not in data, place


def test_an_s3_that_is_away_for_a_whole_sweep_gets_the_files_afterwards(tmp_path: Path, mlflow_uri: str) -> None:
    port = servers.free_port()  # nobody listens there
    away = {
        **servers.s3_environment(f"http://{servers.HOST}:{port}", "0" * 32),
        "AWS_MAX_ATTEMPTS": "1",
    }  # five of them take as many seconds
    home = home_at(tmp_path / "home", away, "late", mlflow_uri)
    done = home.submitted("away", 1, "--address", "local")
    assert [row.state for row in home.rows] == ["SUCCEEDED"] * 2
    assert {path.name for path in pending(home.path / FOLDER)} == home.digests()
    assert f"files wait in {home.path / FOLDER} for the artifact store" in done.stderr
    assert home.call("compare").returncode == 0
    with servers.object_store(tmp_path, port) as s3:
        again = home.call("resume", "away")
        assert again.returncode == 0, again.stderr
        assert "already complete: 2 cached, 0 to run" in again.stderr
        assert "files wait for the artifact store; they are sent in the background" in again.stderr
        servers.until(lambda: not pending(home.path / FOLDER), (home.path / "uploader.log").read_text(), 60)
        found = stored(s3, "late")
    assert set(found) == home.digests()
    assert all(hashlib.sha256(data).hexdigest() == name for name, data in found.items())
