"""Digests of code: what a result depends on, so that changed code means a new trial key.

The digest of a module covers the source of that module and of every module of the same top-level package that it imports, directly or not,
found by reading the import statements, and the C sources that lie in a package of theirs. Nothing is imported.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from functools import lru_cache
from pathlib import Path

from sparsefleet.errors import PluginError


@lru_cache(maxsize=64)
def _package_roots(top: str) -> tuple[Path, ...]:
    """Folders (or the one file) of a top-level package; a top-level name is found without running it."""
    spec = importlib.util.find_spec(top)
    if spec is None:
        raise PluginError(f"cannot find the package {top!r}", fix="reinstall the distribution that names it in its entry points")
    if spec.submodule_search_locations:
        return tuple(Path(place) for place in spec.submodule_search_locations)
    if spec.origin is None:
        raise PluginError(f"package {top!r} has no source file")
    return (Path(spec.origin),)


@lru_cache(maxsize=4096)
def source_of(module: str) -> Path | None:
    """The source file of ``module`` (``__init__.py`` for a package), or None if there is none."""
    top, *rest = module.split(".")
    for root in _package_roots(top):
        if root.is_file():
            if not rest:
                return root
            continue
        for candidate in (root.joinpath(*rest).with_suffix(".py") if rest else root / "__init__.py", root.joinpath(*rest, "__init__.py")):
            if candidate.is_file():
                return candidate
    return None


def _imports(tree: ast.Module, module: str, is_package: bool) -> set[str]:
    """Dotted names of the same top-level package that ``tree`` imports, type-checking blocks left out."""
    top = module.split(".")[0]
    found: set[str] = set()

    class _Visitor(ast.NodeVisitor):
        def visit_If(self, node: ast.If) -> None:
            if "TYPE_CHECKING" not in ast.unparse(node.test):
                self.generic_visit(node)

        def visit_Import(self, node: ast.Import) -> None:
            found.update(alias.name for alias in node.names)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            base = node.module or ""
            if node.level:
                parents = module.split(".") if is_package else module.split(".")[:-1]
                parents = parents[: len(parents) - (node.level - 1)]
                base = ".".join([*parents, base]) if base else ".".join(parents)
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)

    _Visitor().visit(tree)
    return {name for name in found if name.split(".")[0] == top}


@lru_cache(maxsize=4096)
def _read(path: Path) -> bytes:
    return path.read_bytes()


@lru_cache(maxsize=1024)
def modules_of(module: str) -> tuple[str, ...]:
    """``module`` and every module of its top-level package that it imports, sorted."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        path = source_of(name)
        if path is None:  # an attribute, not a module
            continue
        seen.add(name)
        todo.extend(".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 1))  # importing a.b.c runs a and a.b
        todo.extend(_imports(ast.parse(_read(path)), name, path.name == "__init__.py"))
    return tuple(sorted(seen))


def modules_in(package: str) -> tuple[str, ...]:
    """``package`` and the modules beside its ``__init__.py``, sorted."""
    path = source_of(package)
    if path is None:
        raise PluginError(f"cannot find the source of package {package!r}")
    return tuple(sorted({package, *(f"{package}.{p.stem}" for p in path.parent.glob("*.py") if p.stem != "__init__")}))


@lru_cache(maxsize=1024)
def module_digest(module: str) -> str:
    """sha256 (hex) over the names and sources of ``modules_of(module)``.

    Raises:
        PluginError: the module has no source file.
    """
    if source_of(module) is None:
        raise PluginError(f"cannot find the source of module {module!r}")
    sha = hashlib.sha256()
    for name in modules_of(module):
        path = source_of(name)
        assert path is not None  # modules_of lists modules that have one
        for source in (path, *(sorted(path.parent.glob("*.c")) if path.name == "__init__.py" else ())):
            sha.update(f"{name}\0".encode() + _read(source) + b"\0")
    return sha.hexdigest()
