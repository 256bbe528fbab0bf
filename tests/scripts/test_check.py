"""The one command of checks fails when a check fails, and says what to run then."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def check(monkeypatch):
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("check_script", ROOT / "scripts" / "check.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "check_script", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["check.py"])
    return module


def _use(check, monkeypatch, *codes):
    made = [
        check.Check(f"c{n}", (sys.executable, "-c", f"print('said {n}'); raise SystemExit({code})"), f"fix {n}")
        for n, code in enumerate(codes)
    ]
    monkeypatch.setattr(check, "checks", lambda everything: made)


def test_all_well(check, monkeypatch, capsys):
    _use(check, monkeypatch, 0, 0)
    assert check.main() == 0
    said = capsys.readouterr().out
    assert re.findall(r"^(\w+) +(c\d)", said, re.MULTILINE) == [("ok", "c0"), ("ok", "c1")]
    assert "\nsaid 0\n" not in said


def test_one_failure_fails_the_whole_and_the_rest_still_runs(check, monkeypatch, capsys):
    _use(check, monkeypatch, 0, 3, 0)
    assert check.main() == 1
    said = capsys.readouterr().out
    assert re.findall(r"^(\w+) +(c\d)", said, re.MULTILINE) == [("ok", "c0"), ("FAILED", "c1"), ("ok", "c2")]
    assert "\nsaid 1\n" in said
    assert "fix: fix 1" in said
    assert "fix: fix 0" not in said


def test_an_unknown_check_is_refused(check, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check.py", "--only", "lnt"])
    with pytest.raises(SystemExit, match="2"):
        check.main()
    assert "valid: lint" in capsys.readouterr().err


def test_no_marker_but_gpu_data_and_sparseprop_escapes_all_runs(check):
    """All of them together are all tests but those for a GPU, for MNIST's files or for a peer that no extra installs: nothing skips itself."""
    marked = {c.name: c.command[c.command.index("-m", 3) + 1] for c in check.checks(everything=True) if "pytest" in c.command}
    assert marked == {
        "tests": f"not ({check.SLOW} or backends or gpu or data or torch_sparse or sparseprop)",
        "torch-sparse tests": f"torch_sparse and not ({check.SLOW} or gpu)",
        "slow tests": f"({check.SLOW}) and not (alone or backends or gpu)",
        "tests alone": f"({check.SLOW}) and alone and not (backends or gpu)",
        "back-end tests": "backends",
    }
