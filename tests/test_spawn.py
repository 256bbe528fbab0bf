"""Children run this package, also where another copy of it lies in the working directory."""

import subprocess
import sys
from pathlib import Path

import pytest

import sparsefleet
from sparsefleet.errors import UserError
from sparsefleet.spawn import module_command, refuse_other_copies

ROOT = Path(sparsefleet.__file__).parent


@pytest.fixture
def copy(tmp_path):
    (tmp_path / "sparsefleet").mkdir()
    (tmp_path / "sparsefleet" / "__init__.py").write_text("raise SystemExit('the wrong copy')")
    return tmp_path


@pytest.mark.parametrize("has_flag", [True, False])
def test_a_module_is_not_taken_from_the_working_directory(copy, has_flag):
    if has_flag and sys.version_info < (3, 11):
        pytest.skip("python 3.10 has no -P")
    wrong = subprocess.run([sys.executable, "-m", "sparsefleet.describe", "[]"], cwd=copy, capture_output=True, text=True, check=False)
    assert "the wrong copy" in wrong.stderr
    command = module_command("sparsefleet.describe", "[]", has_flag=has_flag)
    subprocess.run(command, cwd=copy, check=True)


def test_nothing_else_starts_a_module_of_ours():
    spawning = [path for path in ROOT.rglob("*.py") if '"-m", "sparsefleet' in path.read_text() or '"-m", _MODULE' in path.read_text()]
    assert spawning == []


def test_ray_is_not_started_beside_another_copy(copy, tmp_path_factory):
    with pytest.raises(UserError, match="holds another copy of sparsefleet than the installed one"):
        refuse_other_copies(copy)
    refuse_other_copies(tmp_path_factory.mktemp("elsewhere"))
    refuse_other_copies(ROOT.parent)
