"""What says that a disk is full, and what does not."""

from __future__ import annotations

import errno
import resource
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from sparsefleet.errors import NoSpace, UserError
from sparsefleet.home import write_private
from sparsefleet.ledger import open_ledger
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


OPEN = """
import sys
from pathlib import Path
from sparsefleet.errors import NoSpace
from sparsefleet.ledger import open_ledger, read_ledger
for opened in (read_ledger, open_ledger):
    try:
        opened(Path(sys.argv[1])).close()
    except NoSpace as error:
        print(error.what)
"""


def _nothing_can_be_written() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def test_a_ledger_on_a_full_disk_is_not_called_damaged(tmp_path: Path) -> None:
    """To read it SQLite makes a small file beside it, and what it says if it cannot is "disk I/O error"."""
    open_ledger(tmp_path).close()
    command = [sys.executable, "-c", OPEN, str(tmp_path)]
    done = subprocess.run(command, preexec_fn=_nothing_can_be_written, capture_output=True, text=True, check=True)
    assert [line.partition(" is full")[0] for line in done.stdout.splitlines()] == [f"the disk of {tmp_path}"] * 2


def test_a_file_that_cannot_be_replaced_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "view.json"
    write_private(path, "before")
    code = "import sys; from pathlib import Path; from sparsefleet.home import write_private; write_private(Path(sys.argv[1]), 'x' * 9000)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], preexec_fn=_nothing_can_be_written, capture_output=True, text=True, check=False
    )
    assert f"NoSpace: the disk of {tmp_path} is full" in done.stderr
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("view.json", "before")]
