"""Files by digest."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from sparsefleet.errors import BackendUnreachable, IntegrityError, UserError
from sparsefleet.ledger import ArtifactStore


@pytest.mark.parametrize("scheme", ["path", "file", "memory"])
def test_put_then_get(tmp_path: Path, scheme: str) -> None:
    root = tmp_path / "store with space"
    store = ArtifactStore({"path": str(root), "file": root.as_uri(), "memory": f"memory://{tmp_path.name}"}[scheme])
    source = tmp_path / "masks.bin"
    source.write_bytes(b"abc")
    ref = store.put(source)
    assert (ref.name, ref.sha256, ref.bytes) == ("masks.bin", hashlib.sha256(b"abc").hexdigest(), 3)
    assert store.put(source, "again") == type(ref)("again", ref.sha256, 3)
    assert store.get(ref.sha256, tmp_path / "back" / "m").read_bytes() == b"abc"
    with pytest.raises(BackendUnreachable):
        store.get("0" * 64, tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_an_altered_file_is_never_returned(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "s"))
    source = tmp_path / "f"
    source.write_bytes(b"abc")
    ref = store.put(source)
    (stored,) = (tmp_path / "s").rglob(ref.sha256)
    stored.write_bytes(b"abd")
    with pytest.raises(IntegrityError, match="digest"):
        store.get(ref.sha256, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("*.part"))


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    with pytest.raises(BackendUnreachable, match="cannot be written"):
        ArtifactStore(str(tmp_path / "f")).put(tmp_path / "f")


@pytest.mark.parametrize("uri", ["http://169.254.169.254/x", "HTTPS://example.org/x", "ftp://h/x", "simplecache::http://h/x"])
def test_addresses_of_the_web_are_no_stores(uri):
    with pytest.raises(UserError, match="artifacts cannot lie at"):
        ArtifactStore(uri)
