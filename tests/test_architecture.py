"""Who may import whom, and what may not appear anywhere."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*ROOT.glob("sparsefleet/**/*.py"), *ROOT.glob("plugins/**/*.py")])
FORBIDDEN = {
    "torch.load",
    "pickle.load",
    "pickle.loads",
    "yaml.load",
    "eval",
    "exec",
    "joblib.load",
    "numpy.load",
}


def test_layers_are_respected():
    done = subprocess.run([str(Path(sys.executable).parent / "lint-imports")], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_unsafe_call(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in FORBIDDEN, f"{path}:{node.lineno} calls {name}"
            assert not (name.startswith("mlflow") and name.endswith("load_model")), f"{path}:{node.lineno} calls {name}"
            assert not any(k.arg == "shell" and ast.unparse(k.value) == "True" for k in node.keywords), f"{path}:{node.lineno} uses a shell"


def test_plugins_import_only_public_names():
    allowed = ("sparsefleet", "sparsefleet.nn", "sparsefleet.ops", "sparsefleet_plugins")
    for path in ROOT.glob("plugins/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for name in (n for n in names if n.startswith("sparsefleet")):
                assert name in allowed or name.startswith(("sparsefleet.ops.", "sparsefleet_plugins.")), (
                    f"{path}:{node.lineno} imports {name}"
                )


def test_the_core_names_no_plugin_module():
    for path in ROOT.glob("sparsefleet/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not [n for n in names if n.startswith("sparsefleet_plugins")], f"{path}:{node.lineno}"


def test_no_file_is_too_long():
    long = [f"{p.relative_to(ROOT)}: {n}" for p in SOURCES if (n := len(p.read_text().splitlines())) > 400]
    assert long == []
