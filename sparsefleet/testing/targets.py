"""Which plugins a name, a file or a project folder stands for. Imports neither torch nor a plugin."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import sys
from importlib import invalidate_caches, metadata
from pathlib import Path
from typing import Any

from sparsefleet import one_file
from sparsefleet.catalogue import Entry
from sparsefleet.distributions import GROUP
from sparsefleet.errors import UserError, did_you_mean
from sparsefleet.home import cache_dir
from sparsefleet.registry import catalog

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def entries_of(what: str) -> list[Entry]:
    """The catalogue's entries for ``what``, broken ones too; a path is importable from now on, in child processes as well.

    Args:
        what: an installed plugin, ``FAMILY/NAME`` where two families share one; a one-file plugin; a folder with a ``pyproject.toml``.

    Raises:
        UserError: no plugin is called so, or nothing can be read at the path.
    """
    path = Path(what).expanduser()
    if path.suffix == ".py":
        return _of_file(path.absolute())
    if _is_folder(what, path):
        return _of_project(path.resolve())
    family, _, name = what.rpartition("/")
    found = catalog().entries
    entries = [entry for entry in found if entry.name == name and family in ("", entry.family)]
    if not entries:
        elsewhere = [f"{entry.family}/{entry.name}" for entry in found if entry.name == name and entry.family != "hooks"]
        if elsewhere:
            raise UserError(f"no {family} is called {name!r}", fix=" or ".join(elsewhere))
        known = sorted({entry.name for entry in found if entry.family != "hooks" and family in ("", entry.family)})
        raise UserError(
            f"no plugin is called {what!r}, and it is no file or folder",
            fix=did_you_mean(name, known) if known else "",
        )
    if len({entry.family for entry in entries}) > 1 and all(entry.state == "ok" for entry in entries):
        choices = " or ".join(f"{entry.family}/{entry.name}" for entry in entries)
        raise UserError(f"{len(entries)} plugins are called {name!r}", fix=f"say {choices}")
    return entries


def installs(what: str) -> str | None:
    """The command that installs ``what``, if it is the folder of a project that is not installed; to be asked before ``entries_of``."""
    path = Path(what).expanduser()
    if path.suffix == ".py" or not _is_folder(what, path):
        return None
    try:
        metadata.distribution(str(_project_table(path).get("name", "")))
    except (metadata.PackageNotFoundError, ValueError):
        return shlex.join(["pip", "install", "-e", what])
    return None


def _is_folder(what: str, path: Path) -> bool:
    return path.is_dir() and (os.sep in what or what in (".", "..") or (path / "pyproject.toml").is_file())


def _of_file(path: Path) -> list[Entry]:
    if not path.exists():
        raise UserError(
            f"{path} is not there", fix="name a Python file, the folder of a project with a pyproject.toml, or an installed plugin"
        )
    one = one_file.materialise(path)
    named = [part for part in os.environ.get(one_file.VARIABLE, "").split(os.pathsep) if part and Path(part).name != path.name]
    os.environ[one_file.VARIABLE] = os.pathsep.join([*named, str(path)])
    return [entry for entry in catalog().entries if entry.distribution == one.distribution]


def _of_project(folder: Path) -> list[Entry]:
    project = _project_table(folder)
    name, version = str(project.get("name", "")), str(project.get("version", "0"))
    points = project.get("entry-points", {}).get(GROUP, {})
    if not name or not points:
        lacking = f"[project.entry-points.{GROUP}]" if name else "[project] name"
        raise UserError(
            f"{folder / 'pyproject.toml'} has no {lacking}", fix="sparsefleet plugins new pruner my-method shows one that works"
        )
    info = _described(name, version, {str(key): str(value) for key, value in points.items()})
    places = [str(info), *(str(place) for place in (folder / "src", folder) if place.is_dir())]
    sys.path[:] = [*places, *(place for place in sys.path if place not in places)]
    invalidate_caches()
    return [entry for entry in catalog().entries if entry.distribution == name]


def _project_table(folder: Path) -> dict[str, Any]:
    path = folder / "pyproject.toml"
    try:
        return dict(tomllib.loads(path.read_text(encoding="utf-8")).get("project", {}))
    except OSError as error:
        raise UserError(f"{path} cannot be read", cause=error.strerror, fix="name the folder of a project, or a Python file") from error
    except ValueError as error:
        raise UserError(f"{path} is no TOML", cause=str(error)) from error


def _described(name: str, version: str, points: dict[str, str]) -> Path:
    """A folder in the cache with the ``.dist-info`` that an installer would write."""
    lines = "".join(f"{key} = {value}\n" for key, value in sorted(points.items()))
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    folder = cache_dir() / "projects" / hashlib.sha256((about + lines).encode()).hexdigest()[:24]
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    shutil.rmtree(folder, ignore_errors=True)
    info.mkdir(parents=True, mode=0o700)
    (info / "METADATA").write_text(about)
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}")
    (info / "INSTALLER").write_text("sparsefleet\n")
    return folder
