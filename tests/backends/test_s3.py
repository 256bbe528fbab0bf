"""Our own store of files in S3: read back by digest, put once, and what it says when S3 is away."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import backend_servers as servers
import boto3
import pytest

from sparsefleet.errors import BackendUnreachable, IntegrityError
from sparsefleet.ledger.store import ArtifactStore

URI = f"s3://{servers.BUCKET}/store"


@pytest.fixture
def environment(s3: servers.ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(environment: None):
    return boto3.resource("s3").Bucket(servers.BUCKET)


def test_a_file_is_stored_once_and_read_back_by_its_digest(bucket, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights" * 1000)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    store = ArtifactStore(URI)
    (ref,) = store.put_all([("model.safetensors", file)])
    assert (ref.sha256, ref.bytes) == (digest, 7000)
    (stored,) = bucket.objects.filter(Prefix="store/")
    assert stored.key == f"store/{digest[:2]}/{digest}"
    written = stored.last_modified
    time.sleep(1.1)  # S3 tells whole seconds
    assert ArtifactStore(URI).put(file, "again").sha256 == digest
    (stored,) = bucket.objects.filter(Prefix="store/")
    assert stored.last_modified == written
    assert store.get(digest, tmp_path / "back").read_bytes() == file.read_bytes()


def test_altered_bytes_are_refused_and_absent_ones_named(bucket, tmp_path: Path) -> None:
    file = tmp_path / "masks"
    file.write_bytes(b"masks")
    ref = ArtifactStore(URI).put(file)
    bucket.put_object(Key=f"store/{ref.sha256[:2]}/{ref.sha256}", Body=b"other")
    with pytest.raises(IntegrityError, match="does not match its digest"):
        ArtifactStore(URI).get(ref.sha256, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    with pytest.raises(BackendUnreachable, match="cannot be read") as absent:
        ArtifactStore(URI).get("0" * 64, tmp_path / "back")
    assert isinstance(absent.value.__cause__, FileNotFoundError)


TOUCH = """
import sys
from pathlib import Path
from sparsefleet.errors import BackendUnreachable
from sparsefleet.ledger.store import ArtifactStore
store, file = ArtifactStore(sys.argv[1]), Path(sys.argv[2])
for touch in (lambda: store.put(file), lambda: store.get("0" * 64, file.with_name("back"))):
    try:
        touch()
    except BackendUnreachable as error:
        print(error.what)
"""


def test_an_s3_that_is_away_is_said_within_seconds(s3: servers.ObjectStore, tmp_path: Path) -> None:
    """In a process of its own: fsspec keeps the connections of this one."""
    file = tmp_path / "file"
    file.write_bytes(b"x")
    env = {**os.environ, **s3.environment, "AWS_ENDPOINT_URL": f"http://{servers.HOST}:{servers.free_port()}"}
    done = subprocess.run([sys.executable, "-c", TOUCH, URI, str(file)], env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout.splitlines() == [
        f"artifact store {URI} cannot be written",
        f"artifact {'0' * 12} cannot be read from {URI}",
    ], done.stderr
