"""What the import of a plugin's module does to the process, seen in a process of its own: ``python -m sparsefleet.testing.imports '["module", …]'``."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from sparsefleet.code_digest import modules_of, source_of
from sparsefleet.errors import PluginError
from sparsefleet.plugin import Plugin
from sparsefleet.spawn import module_command
from sparsefleet.testing.expect import expect
from sparsefleet.testing.surroundings import Generators, Surroundings

_LIMIT_S = 120.0


@dataclass(frozen=True)
class Report:
    """What one import did.

    Attributes:
        seconds: without the libraries that it imports.
        cuda: lines that started CUDA.
        changes: shared state that it changed, global generators that it drew from.
        ended: how it ended the process; empty: it did not.
    """

    seconds: float = 0.0
    cuda: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    ended: str = ""


_known: dict[str, Report] = {}


def imports_cleanly(plugin: Plugin) -> None:
    """Importing the module starts no CUDA, draws no random number and changes nothing that others share: every plan imports every plugin."""
    module = type(plugin).__module__
    if not _can_be_imported_by_name(type(plugin)):
        return
    prime([module])
    report = _known[module]
    expect(not report.ended, "an import that ends", report.ended, "do the work when the plugin is used")
    expect(
        not report.cuda,
        "no CUDA at import",
        f"started at {', '.join(report.cuda)}",
        "make tensors where they are used, on x.device: a process that holds CUDA cannot be forked",
    )
    mend = "do it where the plugin is used, and undo it there"
    expect(not report.changes, "an import that changes nothing for others", "; ".join(report.changes), mend)


def prime(modules: Iterable[str]) -> None:
    """Looks at the imports of all ``modules`` in one process, so that ``imports_cleanly`` need not start one for each."""
    todo = [module for module in dict.fromkeys(modules) if module not in _known]
    while todo:
        answers, end = _ask(todo)
        for module, report in answers.items():
            _known[module] = report
        left = [module for module in todo if module not in answers]
        if left:  # the first one without an answer is the one that ended the process
            _known[left.pop(0)] = Report(ended=end)
        todo = left


def report_of(module: str) -> Report:
    """Imports ``module`` here, for the first time in this process, and remembers what that did.

    Raises:
        Exception: whatever the module raises.
    """
    _import_libraries(module)
    generators, before = Generators(), Surroundings()  # in this order: reading numpy.random imports it
    with _cuda_starts(module) as cuda:
        began = time.perf_counter()
        import_module(module)
        seconds = time.perf_counter() - began
    changes = [f"{change.what}: {change.got}" for change in before.changes(module.partition(".")[0])]
    changes += [f"drew from or seeded the generator of {name}" for name in generators.moved()]
    before.restore()
    generators.restore()
    _known[module] = Report(seconds, tuple(cuda), tuple(changes))
    return _known[module]


def _ask(modules: list[str]) -> tuple[dict[str, Report], str]:
    """Answers by module of a process that imports them in this order, and how it ended."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = module_command("sparsefleet.testing.imports", json.dumps(modules))
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=_LIMIT_S, env=env, check=False)
        output, end = done.stdout, f"it ended the process with exit code {done.returncode}"
    except subprocess.TimeoutExpired as error:
        output, end = error.stdout or b"", f"it took more than {_LIMIT_S:.0f} s"
    answers = {}
    for line in output.decode(errors="replace").split("\n"):
        if line.startswith("\x1e"):
            item = json.loads(line[1:])
            answers[item["module"]] = Report(item["seconds"], tuple(item["cuda"]), tuple(item["changes"]), item["ended"])
    return answers, end


def _can_be_imported_by_name(cls: type) -> bool:
    """False for classes of ``__main__``, of a function, and of modules that pytest rewrote: no trial imports those."""
    module = sys.modules.get(cls.__module__)
    spec = getattr(module, "__spec__", None)
    loader = type(getattr(spec, "loader", None)).__module__
    if "<locals>" in cls.__qualname__ or spec is None or cls.__module__ == "__main__" or loader.startswith("_pytest"):
        return False
    try:
        found = importlib.util.find_spec(cls.__module__)
    except (ImportError, ValueError):
        return False
    return found is not None and found.origin == spec.origin


def _import_libraries(module: str) -> None:
    """Imports first what the module imports from other packages: what those do at import is not its doing."""
    own = module.partition(".")[0]
    for name in ("sparsefleet.hookspecs", *_foreign(module, own)):
        try:
            import_module(name)
        except Exception:  # noqa: BLE001  the module's own import will tell, unless it copes
            continue


def _foreign(module: str, own: str) -> Iterator[str]:
    try:
        trees = [ast.parse(path.read_bytes()) for name in modules_of(module) if (path := source_of(name))]
    except (PluginError, SyntaxError):
        return
    for tree in trees:
        for node in tree.body:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if alias.name.partition(".")[0] != own)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level and node.module.partition(".")[0] != own:
                yield node.module


@contextmanager
def _cuda_starts(module: str) -> Iterator[list[str]]:
    """Lines of the module's package that start CUDA, also where there is none."""
    own, starts, original = module.partition(".")[0], [], torch.cuda._lazy_init

    def recorded() -> Any:
        frames = [frame for frame in traceback.extract_stack() if "importlib" not in frame.filename]
        mine = [frame for frame in frames if own in (Path(frame.filename).stem, *Path(frame.filename).parts)] or frames
        starts.append(f"{Path(mine[-1].filename).name}:{mine[-1].lineno}: {mine[-1].line}")
        return original()  # type: ignore[no-untyped-call]

    torch.cuda._lazy_init = recorded
    try:
        yield starts
    finally:
        torch.cuda._lazy_init = original


def main() -> None:
    """Answers on the real standard output, one line of JSON for each module, as soon as it is known."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for module in json.loads(sys.argv[1]):
        try:
            report = report_of(module)
        except Exception as error:  # noqa: BLE001  whatever it raises is the answer
            report = Report(ended=f"it raised {type(error).__name__}: {error}")
        answers.write("\x1e" + json.dumps({"module": module, **asdict(report)}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
