"""What says that a disk is full, and what does not."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

import pytest

from sparsefleet.errors import NoSpace, UserError
from sparsefleet.space import means_no_space, min_free_mib, shortage


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "quota"), True),
        (sqlite3.OperationalError("database or disk is full"), True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (sqlite3.OperationalError("database is locked"), False),
        (FileNotFoundError(errno.ENOENT, "x"), False),
        (ValueError("full of ideas"), False),
        (None, False),
    ],
)
def test_full_or_not(error: BaseException | None, expected: bool) -> None:
    assert means_no_space(error) is expected


def test_what_caused_it_counts() -> None:
    error = ValueError("the plugin's own words")
    error.__cause__ = OSError(errno.ENOSPC, "full")
    assert means_no_space(error)


def test_a_shortage_names_the_place_and_the_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = shortage([tmp_path / "not" / "there"], 1e12)
    assert isinstance(found, NoSpace)
    assert str(tmp_path) in found.what
    assert "MiB are needed" in found.what
    assert shortage([tmp_path], 0.0) is None
    monkeypatch.setenv("SPARSEFLEET_MIN_FREE_MIB", "much")
    with pytest.raises(UserError, match="MIN_FREE"):
        min_free_mib()
