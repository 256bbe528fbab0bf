"""SE-06: calls that run whatever a file or a text says, found in the syntax tree, under whatever name they were imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.figures import Figure, Run

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("sparsefleet", "plugins", "benchmarks", "scripts")
FORBIDDEN = frozenset(
    {"torch.load", "torch.hub.load", "torch.package", "numpy.load.allow_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib.load"}
    | {f"{module}.{name}" for module in ("pickle", "_pickle") for name in ("load", "loads", "Unpickler")}
    | {f"yaml.{name}" for name in ("load", "load_all", "unsafe_load", "full_load", "Loader", "UnsafeLoader", "FullLoader")}
    | {"eval", "exec", "builtins.eval", "builtins.exec", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
)
"""Dotted names; whatever lies below one is forbidden too. Beside them: mlflow's load_model of every flavour, and the keywords below."""
_KEYWORDS = {("shell", True), ("allow_pickle", True), ("typ", "unsafe"), ("weights_only", False)}
ALLOWED: dict[tuple[str, str], str] = {}
"""(file, name) → why it may stand there. Nothing may, up to now."""

SEEDED = {
    "torch.load": "import torch as t\nt.load('x')",
    "pickle.loads": "from pickle import loads as read\nread(b'')",
    "pickle.load": "import pickle\nf = pickle.load",
    "yaml.load": "import yaml\nyaml.load('x', yaml.Loader)",
    "eval": "eval('1')",
    "exec": "exec('1')",
    "shell=True": "import subprocess\nsubprocess.run('ls', shell=True)",
    "mlflow.pytorch.load_model": "from mlflow import pytorch\npytorch.load_model('x')",
    "mlflow.pyfunc.load_model": "from mlflow.pyfunc import load_model\nload_model('x')",
    "marshal": "import marshal",
    "shelve": "from shelve import open",
    "torch.load by name": "import torch\ngetattr(torch, 'load')('x')",
    "pickle by name": "import importlib\nimportlib.import_module('pickle').loads(b'')",
    "allow_pickle=True": "import numpy\nnumpy.load('x', allow_pickle=True)",
}
"""One file for each that the check must flag."""


class Hit(NamedTuple):
    """One forbidden name in one file."""

    place: str
    line: int
    name: str


def hits_of(source: str, place: str = "seeded.py") -> list[Hit]:
    """Every forbidden name of one module's text."""
    tree = ast.parse(source)
    names = _imported(tree)
    return sorted({Hit(place, line, name) for line, name in _found(tree, names)})


def hits() -> list[Hit]:
    """Those of the whole product but what ``ALLOWED`` lists."""
    found = []
    for place in PLACES:
        for path in sorted((ROOT / place).rglob("*.py")):
            found += hits_of(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())
    return [hit for hit in found if (hit.place, hit.name) not in ALLOWED]


def _imported(tree: ast.AST) -> dict[str, str]:
    """What each name of the module stands for, dotted."""
    names = {"eval": "eval", "exec": "exec"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {(a.asname or a.name.split(".")[0]): (a.name if a.asname else a.name.split(".")[0]) for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {(a.asname or a.name): f"{node.module}.{a.name}" for a in node.names}
    return names


def _found(tree: ast.AST, names: dict[str, str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if _is_forbidden(a.name))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.lineno, f"{node.module}.{a.name}") for a in node.names if _is_forbidden(f"{node.module}.{a.name}"))
        elif isinstance(node, (ast.Attribute, ast.Name, ast.Call)):
            name = _dotted(node, names)
            if name and _is_forbidden(name):
                yield node.lineno, name
        elif isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant) and (node.arg, node.value.value) in _KEYWORDS:
            yield node.value.lineno, f"{node.arg}={node.value.value!r}"


def _dotted(node: ast.AST, names: dict[str, str]) -> str:
    """What an expression names, also through ``getattr`` and ``import_module`` with a fixed text; empty if it names nothing."""
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    if isinstance(node, ast.Attribute):
        left = _dotted(node.value, names)
        return f"{left}.{node.attr}" if left else ""
    if isinstance(node, ast.Call):
        texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if called in ("import_module", "__import__") and texts:
            return texts[0]
        if called == "getattr" and texts and node.args:
            left = _dotted(node.args[0], names)
            return f"{left}.{texts[0]}" if left else ""
    return ""


def _is_forbidden(name: str) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:n]) in FORBIDDEN for n in range(1, len(parts) + 1)) or (parts[0] == "mlflow" and parts[-1] == "load_model")


def figures(run: Run) -> list[Figure]:
    """Forbidden calls in the product, and how many planted ones the check sees."""
    found = hits()
    missed = [name for name, source in SEEDED.items() if not hits_of(source)]
    run.keep([hit._asdict() for hit in found])
    shown = ", ".join(f"{hit.place}:{hit.line} {hit.name}" for hit in found[:5])
    return [
        Figure("calls that run what a file says", "calls", len(found), target=0, at_least=False, note=shown or ", ".join(PLACES)),
        Figure("planted ones that are seen", "calls", len(SEEDED) - len(missed), target=len(SEEDED), note=", ".join(missed)),
    ]
