from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from benchmarks.security import doors

_TALKS = "import subprocess, sys; subprocess.Popen(['sleep', '30']); print('{}', flush=True); sys.stdin.read()"


def held(word: str, folder: Path) -> doors.Held:
    """One that leaves its output to a process that lives on, so that it has no end."""
    return doors.Held([sys.executable, "-c", _TALKS.format(word)], "up", dict(os.environ), folder)


def test_a_door_is_held_from_its_word_on(tmp_path: Path) -> None:
    with held("up 1", tmp_path) as one:
        assert one.line == "up 1"
    assert one.process.returncode == 0


def test_a_door_that_never_opens_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "_START_S", 1.0)
    with pytest.raises(RuntimeError, match="did not start within 1 s"):
        held("down", tmp_path).__enter__()
