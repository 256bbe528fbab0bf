"""What an outsider does after ``plugins new``: the commands of the new project's README, each a process, in a home and a folder of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Failed(Exception):
    """A command of the journey ended with another code than 0; the text holds what it said."""


@dataclass(frozen=True)
class Journey:
    """How far an outsider came.

    Attributes:
        listed: the plugin's line of ``plugins list``.
        check_s: seconds from ``plugins new`` to a green ``plugins check``.
        row_s: seconds from ``plugins new`` to a table with the plugin in it; its own pytest is not in them.
        rows: of that table.
    """

    listed: dict[str, Any]
    check_s: float
    row_s: float
    rows: list[dict[str, Any]]


def travel(family: str, name: str, folder: Path, *, editable: bool = False) -> Journey:
    """From ``plugins new`` to the table and a green pytest.

    Args:
        folder: an empty one.
        editable: ``pip install -e .`` with its dependencies into a virtual environment of its own, and from no index; otherwise as a
            distribution of its own in a target folder.

    Raises:
        Failed: a command did not end well.
    """
    site, project = folder / "site", folder / f"sf-{name}"
    python = _environment(folder / "venv") if editable else Path(sys.executable)
    places = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "SPARSEFLEET_HOME": str(folder / "home"), "SPARSEFLEET_CACHE": str(folder / "cache")}
    env = env if editable else {**env, "PYTHONPATH": os.pathsep.join(places)}

    def sparsefleet(*arguments: str, where: Path = project) -> str:
        return _said([str(python), "-m", "sparsefleet.cli", *arguments], where, env)

    begun = time.perf_counter()
    sparsefleet("plugins", "new", family, name, where=folder)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    if editable:
        _said([*pip, "--python", str(python), "install", "--no-index", "--no-build-isolation", "-e", "."], project, env)
    else:
        _said([*pip, "install", "--no-deps", "--no-build-isolation", "--target", str(site), str(project)], folder, env)
    (listed,) = [p for p in json.loads(sparsefleet("plugins", "list", "--family", family, "--json"))["plugins"] if p["name"] == name]
    sparsefleet("plugins", "check", name)
    check_s = time.perf_counter() - begun
    sparsefleet("submit", "grid", "grid.yaml")
    row_s = time.perf_counter() - begun
    rows = json.loads(sparsefleet("compare", name, "--json"))["rows"]
    _said([str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider"], project, env)
    return Journey(listed, check_s, row_s, [row for row in rows if f'"{name}' in json.dumps(row)])


def _environment(folder: Path) -> Path:
    """The Python of a new virtual environment that finds what is installed here, editable installations too."""
    venv.create(folder, with_pip=False)
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_paths()['purelib']!r})\n")
    return folder / "bin" / "python"


def _said(command: list[str], where: Path, env: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=where, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout
