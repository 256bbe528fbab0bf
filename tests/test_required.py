"""In CI nothing that CI installs may be skipped as missing: see ``SPARSEFLEET_REQUIRE`` in conftest.py."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest
def test_import(): pytest.importorskip("torch_sparse_nowhere")
@pytest.mark.skipif(True, reason="the kernels were not built")
def test_mark(): pass
@pytest.mark.skipif(True, reason="no CUDA device")
def test_other(): pass
@pytest.mark.xfail(reason="kernels")
def test_expected(): assert False
def test_good(): pass
"""


@pytest.mark.parametrize(
    ("required", "bad", "skipped"),
    [("", set(), 3), ("kernels,torch-sparse", {"test_import", "test_mark"}, 1), ("kernels", {"test_mark"}, 2)],
)
def test_a_required_skip_is_a_failure(tmp_path: Path, required: str, bad: set[str], skipped: int) -> None:
    shutil.copy(Path(__file__).parent / "conftest.py", tmp_path)
    (tmp_path / "test_some.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-c", os.devnull, str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "SPARSEFLEET_REQUIRE": required}, capture_output=True, text=True, check=False)
    named = {name for name in ("test_import", "test_mark", "test_other", "test_expected", "test_good") if f"::{name}" in done.stdout}
    assert named == bad, done.stdout
    assert f"{skipped} skipped" in done.stdout
    assert done.returncode == (1 if bad else 0)
