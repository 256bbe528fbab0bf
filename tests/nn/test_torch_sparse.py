"""The import of torch-sparse: what it says, and what is said without it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sparsefleet.errors import UserError
from sparsefleet.nn.torch_sparse import imported_torch_sparse


def said(script: str) -> str:
    done = subprocess.run([sys.executable, "-W", "default", "-c", script], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


@pytest.mark.torch_sparse
def test_the_import_is_silent_about_torch_jit_script_alone() -> None:
    pytest.importorskip("torch_sparse")
    ours = "from sparsefleet.nn.torch_sparse import imported_torch_sparse; imported_torch_sparse().spmm; "
    assert "torch.jit.script" not in said(ours)
    assert "torch.jit.script" in said(ours + "import warnings; warnings.warn('`torch.jit.script` is deprecated')")


def test_without_the_package_the_message_names_the_script_that_builds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_sparse", None)
    with pytest.raises(UserError, match="needs the package torch-sparse") as refused:
        imported_torch_sparse()
    assert "scripts/torch_sparse_wheels.py" in (refused.value.fix or "")
    assert "pip install" not in str(refused.value)
