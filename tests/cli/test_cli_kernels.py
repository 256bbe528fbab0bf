"""What ``doctor`` says of the CPU kernels: it loads them, and names the cause where they are not used."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path

import pytest
from cli_home import run_program

from sparsefleet import kernels
from sparsefleet.errors import UserError


def findings(home: Path, **more: str) -> dict[str, dict[str, str]]:
    done = run_program("doctor", "--json", home=home, cwd=home.parent, **more)
    assert done.returncode in (0, 3), done.stderr
    return {check["what"]: check for check in json.loads(done.stdout)["checks"]}


def test_kernels_that_are_turned_off_are_turned_on_by_unsetting_the_variable(tmp_path: Path) -> None:
    found = findings(tmp_path / "home", SPARSEFLEET_KERNELS="off")
    ours = found["sparse kernels"]
    assert (ours["state"], ours["found"], ours["fix"]) == ("warn", "SPARSEFLEET_KERNELS=off", "unset SPARSEFLEET_KERNELS")
    assert (found["kernels"]["state"], found["kernels"]["found"]) == ("warn", "SPARSEFLEET_KERNELS=off")


def test_a_word_that_is_neither_on_nor_off_is_a_finding(tmp_path: Path) -> None:
    found = findings(tmp_path / "home", SPARSEFLEET_KERNELS="maybe")["sparse kernels"]
    assert (found["state"], found["found"]) == ("fail", "SPARSEFLEET_KERNELS must be on or off, got 'maybe'")


@pytest.mark.slow
def test_a_damaged_library_is_loaded_and_not_called_built(tmp_path: Path) -> None:
    package = tmp_path / "site" / "sparsefleet"
    shutil.copytree(kernels.SOURCE.parents[1], package, ignore=shutil.ignore_patterns("__pycache__"))
    mark = f"sparsefleet kernels {zlib.crc32(kernels.SOURCE.read_bytes()):08x}"
    (package / "ops" / kernels.LIBRARY.name).write_bytes(mark.encode() + b" and no more")
    found = findings(tmp_path / "home", PYTHONPATH=str(package.parent))["sparse kernels"]
    assert found["state"] == "warn"
    assert "the CPU kernels do not load" in found["found"]
    assert found["fix"].startswith("install gcc, then pip install")


@pytest.mark.parametrize("word", ["off", "OFF", "0", "False", "no"])
def test_words_that_turn_the_kernels_off(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEFLEET_KERNELS", word)
    assert kernels.why_not() == f"SPARSEFLEET_KERNELS={word}"


@pytest.mark.parametrize("word", ["", "1", "on", "On", "true", "yes", None])
def test_words_that_leave_them_on(word: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if word is None:
        monkeypatch.delenv("SPARSEFLEET_KERNELS", raising=False)
    else:
        monkeypatch.setenv("SPARSEFLEET_KERNELS", word)
    assert not kernels.is_off()


@pytest.mark.parametrize("word", ["maybe", " ", "2"])
def test_other_words_are_refused(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEFLEET_KERNELS", word)
    with pytest.raises(UserError, match=r"SPARSEFLEET_KERNELS must be on or off, got"):
        kernels.why_not()
