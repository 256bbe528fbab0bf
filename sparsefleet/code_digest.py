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
def import_roots(top: str) -> tuple[Path, ...]:
    """Folders (or the one file) of a top-level package; a top-level name is found without running it."""
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # an empty name, or a module without a spec
        spec = None
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
    for root in import_roots(top):
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
    return {name for name in _imported(tree, module, is_package) if name.split(".")[0] == top}


def _imported(tree: ast.Module, module: str, is_package: bool) -> set[str]:
    """Dotted names that ``tree`` imports, type-checking blocks left out; relative ones only where ``module`` is given."""
    found: set[str] = set()

    class _Visitor(ast.NodeVisitor):
        def generic_visit(self, node: ast.AST) -> None:
            for child in ast.iter_child_nodes(node):
                if not isinstance(child, ast.expr):  # imports are statements; an expression may be too deep to walk
                    self.visit(child)

        def visit_If(self, node: ast.If) -> None:
            types_only = ast.unparse(node.test).split(".")[-1] == "TYPE_CHECKING" and isinstance(node.test, (ast.Name, ast.Attribute))
            for part in node.orelse if types_only else [*node.body, *node.orelse]:
                self.visit(part)

        def visit_Import(self, node: ast.Import) -> None:
            found.update(alias.name for alias in node.names)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            base = node.module or ""
            if node.level and not module:
                return
            if node.level:
                parents = module.split(".") if is_package else module.split(".")[:-1]
                parents = parents[: len(parents) - (node.level - 1)]
                base = ".".join([*parents, base]) if base else ".".join(parents)
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)

    _Visitor().visit(tree)
    return found


def imported_tops(tree: ast.Module) -> set[str]:
    """Top-level names that ``tree`` imports absolutely, wherever it does, type-checking blocks left out."""
    return {name.split(".")[0] for name in _imported(tree, "", False) if name.split(".")[0]}


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
        if name.endswith(".*"):  # of a package with ``__all__`` Python imports the submodules that it lists
            package = source_of(name[:-2])
            if package is not None and package.name == "__init__.py" and b"__all__" in _read(package):
                todo.extend(modules_in(name[:-2]))
            continue
        path = source_of(name)
        if path is None:  # an attribute, not a module
            continue
        seen.add(name)
        if path.suffix != ".py":  # compiled
            continue
        todo.extend(".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 1))  # importing a.b.c runs a and a.b
        todo.extend(_imports_of(name, path))
    return tuple(sorted(seen))


@lru_cache(maxsize=4096)
def _imports_of(module: str, path: Path) -> frozenset[str]:
    """``_imports`` of a file; many modules of a package reach the same ones, and parsing is what takes the time."""
    return frozenset(_imports(ast.parse(_read(path)), module, path.name == "__init__.py"))


def modules_in(package: str) -> tuple[str, ...]:
    """``package`` and the modules beside its ``__init__.py``, sorted."""
    path = source_of(package)
    if path is None:
        raise PluginError(f"cannot find the source of package {package!r}")
    return tuple(sorted({package, *(f"{package}.{p.stem}" for p in path.parent.glob("*.py") if p.stem != "__init__")}))


def forget() -> None:
    """Look at every file anew, in a process that outlives a change of the code; nothing in a trial does."""
    for cached in (import_roots, source_of, _read, _imports_of, modules_of, module_digest):
        cached.cache_clear()


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
