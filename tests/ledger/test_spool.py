"""Files of a trial while the artifact store is away, and afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsefleet.errors import BackendUnreachable, IntegrityError
from sparsefleet.ledger.spool import flush, keep, pending, store_of


def test_files_wait_are_read_and_are_handed_over_once(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"weights")
    (tmp_path / "store").write_text("a file where the folder should be: nothing can be written or read below it")
    store = store_of(str(tmp_path / "store"), tmp_path / "home")
    (ref,), is_pending = keep(store, [("model", tmp_path / "model")])
    assert is_pending
    assert [path.name for path in pending(tmp_path / "home" / "spool")] == [ref.sha256]
    assert store.get(ref.sha256, tmp_path / "got").read_bytes() == b"weights"
    with pytest.raises(BackendUnreachable):
        flush(store)
    assert pending(tmp_path / "home" / "spool")
    (tmp_path / "store").unlink()
    assert (flush(store), flush(store)) == (1, 0)
    assert not pending(tmp_path / "home" / "spool")
    assert store_of(str(tmp_path / "store"), tmp_path / "other").get(ref.sha256, tmp_path / "again").read_bytes() == b"weights"


def test_what_was_altered_is_moved_aside_and_stored_anew(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"weights")
    store = store_of(str(tmp_path / "store"), tmp_path / "home")
    ref = store.put(tmp_path / "model")
    path = tmp_path / "store" / ref.sha256[:2] / ref.sha256
    path.write_bytes(b"weighty")
    with pytest.raises(IntegrityError, match="does not match"):
        store.get(ref.sha256, tmp_path / "got")
    assert not path.exists()
    assert len(list((tmp_path / "store" / "quarantine").iterdir())) == 1
    path.write_bytes(b"weighty")
    store.put(tmp_path / "model")  # the same size is not enough
    assert path.read_bytes() == b"weights"
