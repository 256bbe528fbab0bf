"""Which installed distributions offer plugins, and which files and libraries each of them rests on. Reads metadata; imports nothing."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from importlib.machinery import BYTECODE_SUFFIXES, EXTENSION_SUFFIXES, SOURCE_SUFFIXES
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sparsefleet import code_digest
from sparsefleet.code_digest import import_roots, imported_tops, module_digest, modules_of, source_of
from sparsefleet.errors import PluginError

GROUP = "sparsefleet"
_KEYED_ELSEWHERE = {"sparsefleet", "sparsefleet_plugins", "torch"}
_COMPUTE_NOTHING = {"annotated_types", "pluggy", "pydantic", "pytest", "typing_extensions"}
_IMPORTABLE = (*SOURCE_SUFFIXES, *BYTECODE_SUFFIXES, *EXTENSION_SUFFIXES)
_COMPILED = tuple(EXTENSION_SUFFIXES)
_RUN_TIME_IMPORTS = {"importlib", "lazy_loader", "pkgutil", "runpy"}
_INSTALLED = {"site-packages", "dist-packages"}
_NOT_CARRIED = ("__pycache__", ".git", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".venv")


def with_plugins() -> list[metadata.Distribution]:
    """Distributions with an entry point of ours, by name; of several of one name the first on ``sys.path``, as everywhere in Python.

    What a build left in a source folder (``.egg-info``) is no installation, also where that folder is the working one.
    """
    found: dict[str, metadata.Distribution] = {}
    for dist in metadata.distributions():
        try:
            name = normalised(dist) if points_of(dist) else ""  # parsing the metadata of hundreds of others takes a quarter of a second
        except (TypeError, ValueError):  # somebody's metadata are no text, or an entry point is no assignment
            continue
        if name and not _is_build_output(dist):
            found.setdefault(name, dist)
    return [found[name] for name in sorted(found)]


def normalised(dist: metadata.Distribution) -> str:
    """Its name as tools compare it."""
    return re.sub(r"[-_.]+", "-", str(dist.metadata["Name"])).lower()


def points_of(dist: metadata.Distribution) -> list[metadata.EntryPoint]:
    """Its entry points in our group, sorted."""
    return sorted((point for point in dist.entry_points if point.group == GROUP), key=lambda point: point.name)


def module_of(point: metadata.EntryPoint) -> str:
    """The module that it names; of a malformed one what stands in its place."""
    return point.value.partition(":")[0].partition("[")[0].strip()


def is_local(dist: metadata.Distribution) -> bool:
    """True if another machine cannot fetch it by name and version: installed from a folder or a file, editable, or one file."""
    url = _direct_url(dist)
    return (url is not None and url.startswith("file:")) or (dist.read_text("INSTALLER") or "").strip() in ("", "sparsefleet")


def digest_of(dist: metadata.Distribution, module: str) -> str:
    """sha256 (hex) over what a plugin module runs: of its package the sources that it imports and whatever is no source; the distribution's
    other packages wholly, where it imports them. Where the code names at run time what it imports, of its package every file counts.
    """
    own = module_digest(module)
    package = _package_files(module.split(".")[0], [module])
    found = package if _imports_at_run_time(module) else {name: path for name, path in package.items() if _is_data(name)}
    for top in _behind(module, _own_tops(dist)) & _own_tops(dist):
        found |= _package_files(top, [top])
    if not found:
        return own
    sha = hashlib.sha256(own.encode())
    for name, path in sorted(found.items()):
        published = name.endswith(_COMPILED) and not is_local(dist)  # every machine has its own build of it
        sha.update(f"{name}\0".encode() + (dist.version.encode() if published else hashlib.sha256(path.read_bytes()).digest()))
    return sha.hexdigest()


def libraries_of(dist: metadata.Distribution, module: str) -> dict[str, str]:
    """Versions, by name, of the libraries that a plugin module imports and that may compute; "absent" for what is not installed."""
    own = _own_tops(dist)
    found: dict[str, str] = {}
    for top in _behind(module, own) - own - _KEYED_ELSEWHERE - _COMPUTE_NOTHING - sys.stdlib_module_names:
        found.update(_version_of(top))
    return dict(sorted(found.items()))


def files_of(dist: metadata.Distribution) -> dict[str, Path]:
    """Its files, without ``__pycache__``, by the place that each has in ``site-packages``: packages, modules and two files of metadata.

    Raises:
        PluginError: an entry point names a module without a source file.
    """
    files: dict[str, Path] = {}
    for top in sorted(_own_tops(dist) | {module_of(point).split(".")[0] for point in points_of(dist)}):
        files.update(_package_files(top, [module_of(point) for point in points_of(dist)]))
    return dict(sorted(files.items()))


def files_digest(dist: metadata.Distribution) -> str:
    """sha256 (hex) over the names and bytes of ``files_of`` and the entry points: one changed byte is another digest."""
    sha = hashlib.sha256()
    for name, path in files_of(dist).items():
        sha.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    for point in points_of(dist):
        sha.update(f"{point.name}={point.value}\0".encode())
    return sha.hexdigest()


def forget() -> None:
    """As ``sparsefleet.code_digest.forget``, with what is remembered here."""
    code_digest.forget()
    for cached in (_tops_behind, _tops_within, _imports_at_run_time, _version_of, _owners):
        cached.cache_clear()


def _is_build_output(dist: metadata.Distribution) -> bool:
    """True for an ``.egg-info`` that lies elsewhere than among installed packages."""
    return dist.read_text("METADATA") is None and Path(str(dist.locate_file(""))).name not in _INSTALLED


def _direct_url(dist: metadata.Distribution) -> str | None:
    """Where pip was told to take it from (PEP 610); None if it was taken from an index by its name."""
    text = dist.read_text("direct_url.json")
    try:
        return str(json.loads(text)["url"]) if text else None
    except (TypeError, ValueError, KeyError) as error:
        raise PluginError(f"direct_url.json of {dist.metadata['Name']} is not what pip writes", fix="install it again") from error


@lru_cache(maxsize=1024)
def _tops_behind(module: str) -> tuple[str, ...]:
    """Top-level names, other than its own, that the module and what it runs of its package import."""
    own = module.split(".")[0]
    found: set[str] = set()
    for name in modules_of(module):
        path = source_of(name)
        if path is not None and path.suffix == ".py":
            found |= imported_tops(ast.parse(path.read_bytes()))
    return tuple(sorted(found - {own}))


def _behind(module: str, own: set[str]) -> set[str]:
    """Top-level names, other than its own, that the module imports, or what it imports of ``own``."""
    found = set(_tops_behind(module)) | (_tops_within(module.split(".")[0]) if _imports_at_run_time(module) else set())
    todo, seen = found & own, {module.split(".")[0]}
    while todo:
        top = todo.pop()
        seen.add(top)
        found |= _tops_within(top)
        todo |= (_tops_within(top) & own) - seen
    return found - {module.split(".")[0]}


@lru_cache(maxsize=256)
def _tops_within(top: str) -> frozenset[str]:
    """Top-level names that any source of a package imports."""
    found: set[str] = set()
    for path in _package_files(top, [top]).values():
        if path.suffix == ".py":
            with suppress(SyntaxError, ValueError):  # a template, say
                found |= imported_tops(ast.parse(path.read_bytes()))
    return frozenset(found)


@lru_cache(maxsize=1024)
def _imports_at_run_time(module: str) -> bool:
    """True if import statements alone do not tell what of its package the module runs."""
    sources = [path for path in map(source_of, modules_of(module)) if path is not None]
    return not _RUN_TIME_IMPORTS.isdisjoint(_tops_behind(module)) or any(b"__import__" in path.read_bytes() for path in sources)


def _own_tops(dist: metadata.Distribution) -> set[str]:
    """Top-level modules that the distribution installs; of an editable one also those that lie in its source folder."""
    tops = set((dist.read_text("top_level.txt") or "").split())
    for file in dist.files or ():
        first = file.parts[0]
        if file.name.endswith(_IMPORTABLE) and first not in ("..", "__pycache__"):
            tops.add(first.split(".")[0] if len(file.parts) == 1 else first)
    tops = {top for top in tops if top.isidentifier() and not top.startswith("__editable__")}
    url = _direct_url(dist)
    if url is not None and url.startswith("file:"):
        folder = Path(unquote(urlsplit(url).path)).resolve()
        todo = {top for point in points_of(dist) for top in _tops_behind(module_of(point))}
        while todo:
            top = todo.pop()
            if top not in tops | sys.stdlib_module_names and _lies_in(top, folder):
                tops.add(top)
                todo |= _tops_within(top)
    return tops


def _lies_in(top: str, folder: Path) -> bool:
    """True if the package's source is in ``folder``, and not in an environment that somebody has made there."""
    try:
        places = [root.resolve() for root in import_roots(top)]
    except PluginError:  # an optional import that is not installed
        return False
    return all(folder in place.parents and not _INSTALLED.intersection(place.relative_to(folder).parts) for place in places)


def _package_files(top: str, modules: list[str]) -> dict[str, Path]:
    """The files of one top-level name. Of a namespace package only the parts that hold a plugin module, for others own the rest."""
    files: dict[str, Path] = {}
    for root in import_roots(top):
        if root.is_file():
            files[root.name] = root
            continue
        for folder in _owned_folders(root, [m for m in modules if m.split(".")[0] == top]):
            for path in _files_below(folder):
                files["/".join((top, *path.relative_to(root).parts))] = path
    return files


def _files_below(folder: Path) -> Iterator[Path]:
    """Files that may be imported or read, sorted; of what lies elsewhere and is linked here only what Python could import."""
    for path in sorted(folder.iterdir()):
        linked = path.is_symlink()
        if path.name in _NOT_CARRIED:
            continue
        if path.is_dir():
            inside = linked and path.resolve() in (folder.resolve(), *folder.resolve().parents)
            if not inside and (not linked or next(path.glob("*.py"), None) is not None):
                yield from _files_below(path)
        elif path.is_file() and (not linked or path.name.endswith(_IMPORTABLE)):
            yield path


def _is_data(name: str) -> bool:
    """True for a file that no import statement tells of, and that no editor has left there."""
    return not name.endswith((".py", "~")) and not any(part.startswith(".") for part in name.split("/"))


def _owned_folders(root: Path, modules: list[str]) -> Iterator[Path]:
    if (root / "__init__.py").is_file():
        yield root
        return
    for module in modules:
        folder = root
        for part in module.split(".")[1:]:
            if not (folder / part).is_dir():
                break
            folder = folder / part
            if (folder / "__init__.py").is_file():
                break
        if folder.is_dir() and folder != root:
            yield folder


@lru_cache(maxsize=256)
def _version_of(top: str) -> tuple[tuple[str, str], ...]:
    """(distribution, version) behind a top-level name; with the digest of its sources where a version does not tell them apart."""
    try:
        owners = [metadata.distribution(top)]
    except metadata.PackageNotFoundError:
        owners = [metadata.distribution(name) for name in sorted(set(_owners().get(top, ())))]
    if not owners:
        return ((top, _sources_of(top) or "absent"),)
    edited = [(_direct_url(dist) or "").startswith("file:") for dist in owners]
    return tuple(
        (str(d.metadata["Name"]), f"{d.version}+{_sources_of(top)}" if e else d.version) for d, e in zip(owners, edited, strict=True)
    )


def _sources_of(top: str) -> str:
    """12 digits of the digest of a package's sources; empty if there is none."""
    sha = hashlib.sha256()
    try:
        found = {name: path for name, path in _package_files(top, []).items() if name.endswith(".py")}
    except PluginError:
        return ""
    for name, path in sorted(found.items()):
        sha.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return sha.hexdigest()[:12] if found else ""


@lru_cache(maxsize=1)
def _owners() -> dict[str, list[str]]:
    return {top: list(owners) for top, owners in metadata.packages_distributions().items()}
