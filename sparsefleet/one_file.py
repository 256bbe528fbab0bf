"""Plugins that are one file: ``SPARSEFLEET_PLUGINS`` names them, and each becomes a distribution of its own.

The file is copied to the cache under a module name that holds its digest, with a ``.dist-info`` beside it, and that folder is put on
``sys.path``. From there on it is a plugin like any other: found, described, digested, imported and shipped in the same way. Its neighbours do
not come along: what needs more than one file is a package.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from dataclasses import dataclass
from importlib import invalidate_caches
from pathlib import Path
from uuid import uuid4

from sparsefleet.errors import UserError
from sparsefleet.home import cache_dir

VARIABLE = "SPARSEFLEET_PLUGINS"
_MAX_BYTES = 1 << 20
_FOLDER = "one-file"
_FILES = ("METADATA", "entry_points.txt", "INSTALLER")


@dataclass(frozen=True)
class OneFile:
    """A plugin file as a distribution.

    Attributes:
        path: the user's file.
        distribution: its name, which is the file's.
        version: the first 12 hex digits of the sha256 of its bytes.
        module: what to import.
        folder: what must be on ``sys.path`` for that.
    """

    path: Path
    distribution: str
    version: str
    module: str
    folder: Path


def activate() -> list[OneFile]:
    """The files that ``SPARSEFLEET_PLUGINS`` names, importable from now on; former versions of them are not.

    Raises:
        UserError: one cannot be read, or two have the same name.
    """
    named = [Path(part) for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]
    paths = list(dict.fromkeys(path.expanduser().absolute() for path in named))
    for number, path in enumerate(paths):
        same = next((other for other in paths[:number] if other.name == path.name), None)
        if same:
            raise UserError(f"two plugin files are called {path.name}: {same} and {path}", fix="a file's name is that of its distribution")
    found = [materialise(path) for path in paths]
    wanted = [str(one.folder) for one in found]
    if [place for place in sys.path if is_one_file_folder(place)] != wanted:
        sys.path[:] = [place for place in sys.path if not is_one_file_folder(place)] + wanted
        invalidate_caches()
    return found


def is_one_file_folder(place: str) -> bool:
    """True for the folders that ``activate`` puts on ``sys.path``."""
    return Path(place).parent.name == _FOLDER and re.fullmatch("[0-9a-f]{8}-[0-9a-f]{24}", Path(place).name) is not None


def materialise(path: Path) -> OneFile:
    """``path`` as a distribution in the cache; the same bytes under the same name are written once.

    Raises:
        UserError: it is not a Python file of at most 1 MiB that can be read.
    """
    body = _read(path)
    sha = hashlib.sha256(body).hexdigest()
    version = sha[:12]
    module = f"{_as_word(path)}_{version}"
    module = module if module.isidentifier() else f"_{module}"
    folder = cache_dir() / _FOLDER / f"{hashlib.sha256(path.name.encode()).hexdigest()[:8]}-{sha[:24]}"
    one = OneFile(path, path.name, version, module, folder)
    if not _is_there(one, body):
        _write(one, body)
    return one


def _as_word(path: Path) -> str:
    """The file's name without what neither a module nor an entry point may hold."""
    return re.sub(r"[^0-9A-Za-z_]", "_", path.stem)[:64]


def _read(path: Path) -> bytes:
    fix = "a plugin file is one Python file; a package is installed: pip install -e FOLDER"
    if not path.name.isprintable():
        raise UserError(f"the name of plugin file {str(path)!r} cannot be that of a distribution", fix="use letters, digits, - and _")
    if path.suffix != ".py" or not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there" if not path.exists() else "is not a Python file"
        raise UserError(f"plugin file {path} {what}", fix=fix)
    if path.stat().st_size > _MAX_BYTES:
        raise UserError(f"plugin file {path} has {path.stat().st_size:,} bytes, at most {_MAX_BYTES:,} are read", fix=fix)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"plugin file {path} cannot be read", cause=error.strerror) from error


def _is_there(one: OneFile, body: bytes) -> bool:
    """True if the folder holds exactly these bytes and what finds them: nobody has edited or cleaned the copy."""
    try:
        return (one.folder / f"{one.module}.py").read_bytes() == body and all((_info(one.folder, one) / name).is_file() for name in _FILES)
    except OSError:
        return False


def _info(folder: Path, one: OneFile) -> Path:
    return folder / f"{one.module}-{one.version}.dist-info"


def _write(one: OneFile, body: bytes) -> None:
    part = one.folder.with_name(f"{one.folder.name}.{uuid4().hex[:8]}.part")
    part.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part.mkdir(mode=0o700)
    (part / f"{one.module}.py").write_bytes(body)
    info = _info(part, one)
    info.mkdir(mode=0o700)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {one.distribution}\nVersion: {one.version}\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[sparsefleet]\n{_as_word(one.path)} = {one.module}\n")
    (info / "INSTALLER").write_text("sparsefleet\n")
    for path in (part / f"{one.module}.py", *info.iterdir()):
        path.chmod(0o600)
    if one.folder.exists() and not _is_there(one, body):  # with other bytes, or incomplete: somebody has been there
        one.folder.rename(one.folder.with_name(f"{one.folder.name}.{uuid4().hex[:8]}.altered"))
    try:
        part.rename(one.folder)
    except OSError:  # another process was first
        shutil.rmtree(part, ignore_errors=True)
        if not _is_there(one, body):
            raise
