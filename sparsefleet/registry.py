"""Finds plugins, keeps a broken one from harming the others, and builds the one that a trial names.

Two views. The *catalogue* is what grids, plans and listings need: names, JSON schemas and class facts of every plugin. It is made in a
separate process, which a plugin that exits or crashes at import cannot leave with anything but its own entry missing, and it is cached under
the digests of the plugins' code, so that reading it imports no plugin and no torch. The *registry* is what a trial needs: the classes, each
imported only when it is asked for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import lru_cache
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsefleet.allow_list import allow_list
from sparsefleet.catalogue import Catalog as Catalog, Entry as Entry
from sparsefleet.code_digest import module_digest
from sparsefleet.deprecated import used_by
from sparsefleet.distributions import digest_of, libraries_of, module_of, points_of, with_plugins
from sparsefleet.errors import PluginError, UserError, did_you_mean
from sparsefleet.home import cache_dir, write_private
from sparsefleet.one_file import activate, is_one_file_folder
from sparsefleet.spawn import module_command

if TYPE_CHECKING:
    import pluggy

    from sparsefleet.plugin import Plugin

_CACHE_FORMAT = 6
_DESCRIBE_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class _Point:
    """An entry point as its distribution declares it; ``refused`` is (state, reason) where it may not be imported."""

    name: str
    module: str
    distribution: str
    version: str
    refused: tuple[str, str] | None = None
    dist: metadata.Distribution = field(compare=False, repr=False, kw_only=True)

    @property
    def is_one_file(self) -> bool:
        """True if ``module`` is a name that was made up for a file of the user's, which ``distribution`` names."""
        return self.distribution.endswith(".py") and self.module.endswith(f"_{self.version}")

    def broken(self, digest: str, reason: str, state: str = "broken") -> Entry:
        """The one entry of a point that cannot be used."""
        return Entry("?", self.name, self.distribution, self.version, self.module, digest, state=state, reason=reason)


def _points() -> list[_Point]:
    activate()
    allowed = allow_list()
    found = []
    for dist in with_plugins():
        refused = allowed.refusal(dist) if allowed else None
        found += [_Point(ep.name, module_of(ep), str(dist.metadata["Name"]), dist.version, refused, dist=dist) for ep in points_of(dist)]
    return sorted(found, key=lambda p: (p.distribution, p.name))


_kept: list[Catalog] = []


def keep_catalog() -> Catalog:
    """Look for plugins once: from now on ``catalog()`` of this process and of those forked from it gives this answer."""
    _kept[:] = [catalog()]
    return _kept[0]


def catalog(refresh: bool = False) -> Catalog:
    """Every installed plugin, from the cache where the code has not changed."""
    if _kept and not refresh:
        return _kept[0]
    keys: dict[_Point, tuple[str, dict[str, str]]] = {}
    entries: list[Entry] = []
    for point in _points():
        if point.refused:
            entries.append(point.broken("", point.refused[1], point.refused[0]))
            continue
        try:
            own = point.distribution == "sparsefleet"
            keys[point] = (module_digest(point.module), {}) if own else _identity(point)
        except (PluginError, SyntaxError, OSError, ValueError) as error:
            entries.append(point.broken("", _told(point, error)))
    contract = module_digest("sparsefleet.plugin")[:16] + module_digest("sparsefleet.deprecated")
    cached = {} if refresh else _load_cache()
    fresh: dict[str, list[dict[str, Any]]] = {}
    missing: list[tuple[_Point, str]] = []
    for point, (digest, libraries) in keys.items():
        python = f"{sys.version_info[0]}.{sys.version_info[1]}"
        slot = f"{contract[:32]}:{python}:{point.distribution}:{point.version}:{point.name}:{point.module}:{digest}:{json.dumps(libraries)}"
        known = next((place for place in (slot, f"{slot}:{_installed()}") if place in cached), None)
        if known:
            fresh[known] = cached[known]
        else:
            missing.append((point, slot))
    if missing:
        described = _describe([point for point, _ in missing])
        for point, slot in missing:
            found, (digest, libraries) = described[point.distribution, point.name], keys[point]
            if isinstance(found, str):
                reason = found.replace(point.module, point.distribution) if point.is_one_file else found
                fresh[f"{slot}:{_installed()}"] = [asdict(point.broken(digest, reason))]  # what it lacks may be installed
            else:
                base: dict[str, Any] = {
                    "distribution": point.distribution,
                    "version": point.version,
                    "module": point.module,
                    "digest": digest,
                    "libraries": libraries,
                }
                fresh[slot] = [asdict(Entry(**base, **item)) for item in found]
        _save_cache({**cached, **fresh})
    entries += [Entry(**item) for items in fresh.values() for item in items]
    return Catalog(entries)


def _told(point: _Point, error: Exception) -> str:
    """Why the code of a point cannot be digested; a file is named as its author knows it."""
    if isinstance(error, SyntaxError):
        name = point.distribution if point.is_one_file else Path(error.filename or point.module).name
        return f"{type(error).__name__}: {error.msg} ({point.module if name == '<unknown>' else name}, line {error.lineno})"
    return f"{type(error).__name__}: {error}"


def _identity(point: _Point) -> tuple[str, dict[str, str]]:
    """Digest of the code behind somebody else's plugin, and the versions of the libraries that it imports."""
    return digest_of(point.dist, point.module), libraries_of(point.dist, point.module)


def _installed() -> str:
    """Changes whenever something is installed or removed: the times of the folders on ``sys.path``."""
    return ",".join(str(os.stat(place).st_mtime_ns) for place in sys.path if os.path.isdir(place))


def _cache_file() -> Path:
    return cache_dir() / "catalog.json"


def _load_cache() -> dict[str, list[dict[str, Any]]]:
    try:
        stored = json.loads(_cache_file().read_text())
    except (OSError, ValueError):  # absent, unreadable or half-written by an older version: made anew
        return {}
    return dict(stored["slots"]) if isinstance(stored, dict) and stored.get("format") == _CACHE_FORMAT else {}


def _save_cache(slots: Mapping[str, Any]) -> None:
    newest = dict(list(slots.items())[-500:])
    write_private(_cache_file(), json.dumps({"format": _CACHE_FORMAT, "slots": newest}))


def _describe(points: list[_Point]) -> dict[tuple[str, str], list[dict[str, Any]] | str]:
    """What each entry point offers, or the reason why it is broken; plugin code runs in a child process only."""
    results: dict[tuple[str, str], list[dict[str, Any]] | str] = {}
    todo = list(points)
    while todo:
        argument = json.dumps([[p.name, p.module, p.distribution] for p in todo])
        # no bytecode: Python takes it for current when the source has changed within a second and not in length
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                module_command("sparsefleet.describe", argument),
                capture_output=True,
                text=True,
                timeout=_DESCRIBE_TIMEOUT_S,
                env=env,
                check=False,
            )
            output, end = done.stdout, f"ended the process with exit code {done.returncode} at import"
            if done.returncode < 0:
                end = f"ended the process with signal {-done.returncode} at import"
        except subprocess.TimeoutExpired as error:
            raw = error.stdout or b""
            output = raw.decode(errors="replace") if isinstance(raw, bytes) else raw
            end = f"took more than {_DESCRIBE_TIMEOUT_S:.0f} s to import"
        n_before = len(todo)
        for line in output.split("\n"):  # splitlines would also split at the marker
            if line.startswith("\x1e"):
                item = json.loads(line[1:])
                results[item["distribution"], item["point"]] = item["error"] if item["error"] else item["plugins"]
        todo = [p for p in todo if (p.distribution, p.name) not in results]
        if todo and len(todo) <= n_before:  # the first one without an answer is the one that ended the process
            culprit = todo.pop(0)
            results[culprit.distribution, culprit.name] = end
    return results


class Registry:
    """Builds plugins by name, importing each module when it is first asked for."""

    def __init__(self, catalogue: Catalog | None = None) -> None:
        self.catalog = catalogue or catalog()
        self._classes: dict[tuple[str, str], type[Plugin]] = {}

    def plugin_class(self, family: str, name: str) -> type[Plugin]:
        """The class behind a name.

        Raises:
            UnknownPlugin: no such name.
            PluginError: the module failed to import or no longer offers it.
        """
        if (family, name) not in self._classes:
            entry = self.catalog.get(family, name)
            module = load_module(entry.module)
            self._classes.update({(cls.family, cls.name): cls for cls in classes_of(module)})
            if (family, name) not in self._classes:
                raise PluginError(f"module {entry.module} no longer offers {family} {name!r}", fix="sparsefleet plugins list --refresh")
        return self._classes[family, name]

    def build(self, family: str, ref: Any) -> Any:
        """The plugin that ``ref`` (with ``name`` and ``params``) describes.

        Raises:
            UserError: a parameter is unknown or out of its bounds.
        """
        from pydantic import ValidationError

        cls = self.plugin_class(family, ref.name)
        try:
            return cls(**ref.params)
        except ValidationError as error:
            told = [(".".join(map(str, e["loc"])), str(e["msg"]).removeprefix("Value error, ")) for e in error.errors()]
            details = "; ".join(f"{place}: {what}" if place else what for place, what in told)
            raise UserError(f"{family} {ref.name!r}: {details}", fix=f"sparsefleet plugins show {ref.name}") from error

    def observers(self) -> list[Entry]:
        """Entries of the modules that implement an observing hook."""
        return [e for e in self.catalog.entries if e.family == "hooks" and e.state == "ok"]

    def observe(self, hook: str, **arguments: Any) -> list[tuple[str, Any]]:
        """Calls one observing hook, one implementation at a time: (distribution, result or the exception it raised)."""
        results: list[tuple[str, Any]] = []
        for entry in self.observers():
            if hook not in entry.facts["hooks"]:
                continue
            manager = plugin_manager()
            try:
                manager.register(load_module(entry.module), name=entry.module)
                results += [(entry.distribution, value) for value in getattr(manager.hook, hook)(**arguments)]
            except (Exception, SystemExit) as error:  # noqa: BLE001  an observer must not end a trial; the caller records it
                results.append((entry.distribution, error))
        return results


def plugin_manager() -> pluggy.PluginManager:
    """A pluggy manager that knows every hook of sparsefleet and no plugin."""
    import pluggy

    from sparsefleet import hookspecs

    manager = pluggy.PluginManager("sparsefleet")
    manager.add_hookspecs(hookspecs)
    return manager


def load_module(module: str) -> Any:
    """Imports a plugin module; whatever it raises becomes a PluginError that names it."""
    try:
        return import_module(module)
    except (Exception, SystemExit) as error:
        fix = _NEIGHBOUR if isinstance(error, ModuleNotFoundError) and _is_one_file(module) else None
        raise PluginError(f"plugin module {module} failed to import", cause=f"{type(error).__name__}: {error}", fix=fix) from error


_NEIGHBOUR = "a plugin of one file cannot import its neighbours: make it a package (sparsefleet plugins new); or install what it lacks"


def _is_one_file(module: str) -> bool:
    spec = find_spec(module)
    return spec is not None and spec.origin is not None and is_one_file_folder(os.path.dirname(spec.origin))


@lru_cache(maxsize=256)
def classes_of(module: Any) -> list[type[Plugin]]:
    """The plugin classes that a module's registration hooks return, checked.

    Raises:
        PluginError: a misspelt hook, a hook with wrong arguments, or a class of the wrong family or without a name.
    """
    import pluggy

    from sparsefleet.hookspecs import REGISTRATION_HOOKS
    from sparsefleet.plugin import Plugin

    _check_hook_names(module)
    manager = plugin_manager()
    try:
        manager.register(module, name=module.__name__)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(f"plugin module {module.__name__} does not fit the hooks", cause=str(error)) from error
    classes: list[type[Plugin]] = []
    for hook, family in REGISTRATION_HOOKS.items():
        for offered in getattr(manager.hook, hook)():
            for cls in offered:
                if not (isinstance(cls, type) and issubclass(cls, Plugin)):
                    raise PluginError(f"{hook} of {module.__name__} returned {cls!r}, which is not a plugin class")
                if cls.family != family:
                    raise PluginError(f"{hook} of {module.__name__} returned {cls.__name__}, which is a {cls.family or 'plain Plugin'}")
                if not cls.name:
                    raise PluginError(f"{cls.__name__} of {module.__name__} has no name", fix='add a line such as name = "my-method"')
                classes.append(cls)
    return classes


def _check_hook_names(module: Any) -> None:
    from sparsefleet import hookspecs

    known = [name for name in vars(hookspecs) if name.startswith("sparsefleet_")]
    for name, value in vars(module).items():
        marked = getattr(value, "sparsefleet_impl", None) is not None
        hook_like = callable(value) and name.startswith("sparsefleet_")
        if (marked or hook_like) and name not in known:
            raise PluginError(f"{module.__name__}.{name} is not a hook of sparsefleet", fix=did_you_mean(name, known))
        if hook_like and not marked and name in known:
            raise PluginError(f"{module.__name__}.{name} is not marked as a hook", fix="decorate it with @sparsefleet.hookimpl")


@lru_cache(maxsize=1)
def _base_facts() -> frozenset[str]:
    return frozenset({"model_config", "family", "name", "paper"})


def facts_of(cls: type[Plugin]) -> dict[str, Any]:
    """The class facts that plans and listings need, as JSON values."""
    facts: dict[str, Any] = {"paper": cls.paper, "deprecated": used_by(cls)}
    for name in sorted(cls.__class_vars__ - _base_facts()):
        value = getattr(cls, name, None)
        if isinstance(value, (bool, int, float, str)):
            facts[name] = value
        elif isinstance(value, (tuple, list)):
            facts[name] = list(value)
        elif name == "info" and is_dataclass(value) and not isinstance(value, type):  # a property follows from the parameters
            facts[name] = asdict(value)
    decorators = cls.__pydantic_decorators__
    if decorators.model_validators or decorators.field_validators:
        facts["validates"] = True  # beyond its schema: a grid is right only when the class has been built with its parameters
    if cls.family == "model":
        from sparsefleet.plugin import Model

        facts["narrows"] = getattr(cls, "narrowed", None) is not Model.narrowed
    if cls.family == "rewirer":
        from sparsefleet.plugin import Rewirer

        facts["starts_denser"] = getattr(cls, "first_density", None) is not Rewirer.first_density
    return facts
