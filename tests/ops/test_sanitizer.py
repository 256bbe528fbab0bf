"""No kernel reads or writes beside its arrays: all of them run in a library built with AddressSanitizer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def sanitizer():
    """Where gcc has AddressSanitizer's library, or None."""
    if shutil.which("gcc") is None:
        return None
    told = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout.strip()
    return told if Path(told).is_absolute() else None


@pytest.mark.slow
@pytest.mark.skipif(sanitizer() is None, reason="the kernels cannot be checked: no gcc with AddressSanitizer")
def test_no_kernel_leaves_its_arrays(tmp_path):
    """And a column behind the last one, which the kernels take on trust, is found: the check can fail."""
    flags = {"CC": "gcc", "CFLAGS": "-g -DSF_ONE_TARGET -fsanitize=address", "LDFLAGS": "-fsanitize=address"}
    build = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path)]
    built = subprocess.run(build, cwd=ROOT, env={**os.environ, **flags}, capture_output=True, text=True, check=False)
    library = tmp_path / "sparsefleet" / "ops" / "_kernels.so"
    assert library.exists(), built.stderr
    environment = {**os.environ, "LD_PRELOAD": sanitizer(), "ASAN_OPTIONS": "detect_leaks=0"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    whole, damaged = (
        subprocess.run(
            [sys.executable, HERE / "every_kernel.py", library, *how], env=environment, capture_output=True, text=True, check=False
        )
        for how in ((), ("damaged",))
    )
    assert whole.returncode == 0, whole.stderr[:3000]
    assert damaged.returncode != 0
    assert "heap-buffer-overflow" in damaged.stderr, damaged.stderr[:3000]
