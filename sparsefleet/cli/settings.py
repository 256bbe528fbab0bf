"""Every setting of the command line, and where its value comes from.

Precedence: flag, environment (``SPARSEFLEET_…``), ``sparsefleet.toml`` in this folder or the nearest one above, the user's own file, default.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsefleet.errors import UserError, did_you_mean
from sparsefleet.toml_file import read_toml

PROJECT_FILE = "sparsefleet.toml"


@dataclass(frozen=True)
class Setting:
    """One setting. ``also`` names a foreign environment variable that is read after ours, ``variable`` ours where it is not the name's."""

    name: str
    kind: str
    help: str
    default: str | None
    also: str | None = None
    exported_as: str | None = None
    variable: str | None = None

    @property
    def flag(self) -> str:
        """The option of commands that take it."""
        return "--plugin" if self.name == "plugins" else f"--{self.name.replace('_', '-')}"

    @property
    def env(self) -> str:
        """Our environment variable."""
        return self.variable or f"SPARSEFLEET_{self.name.upper()}"


@dataclass(frozen=True)
class Value:
    """A value and who said it."""

    value: Any
    origin: str


_ALL = (
    Setting("home", "path", "Folder of the sweeps' state", ".sparsefleet", exported_as="SPARSEFLEET_HOME"),
    Setting("data", "path", "Folder of the data sets", None, exported_as="SPARSEFLEET_DATA"),
    Setting("cache", "path", "Folder of rebuildable files", None, exported_as="SPARSEFLEET_CACHE"),
    Setting("artifacts", "uri", "Where models and masks are stored", None, exported_as="SPARSEFLEET_ARTIFACTS"),
    Setting("mlflow_uri", "uri", "MLflow's tracking URI", None, also="MLFLOW_TRACKING_URI", exported_as="MLFLOW_TRACKING_URI"),
    Setting("plugins", "paths", "Plugins that are one Python file each", None, exported_as="SPARSEFLEET_PLUGINS"),
    Setting("allow_list", "path", "Import only the plugins that this file lists", None, exported_as="SPARSEFLEET_ALLOW_LIST"),
    Setting("pictures", "text", "Whether a finished sweep's pictures are drawn and uploaded: on or off", "on"),
    Setting(
        "address",
        "text",
        "Ray cluster: http://HEAD:8265 from any machine, HOST:PORT from one of its nodes, or 'local'",
        "local",
        variable="SPARSEFLEET_RAY_ADDRESS",
    ),
    Setting("max_parallel", "int", "Trials at a time; default: as many as the CPUs allow", None),
    Setting("max_trials", "int", "Refuse grids of more trials than this", "10000"),
)
SETTINGS = {setting.name: setting for setting in _ALL}


def resolve(flags: Mapping[str, str], environ: Mapping[str, str], cwd: Path, user_file: Path) -> dict[str, Value]:
    """The value of every setting.

    Raises:
        UserError: a file is not TOML or names an unknown setting, or a value has the wrong type; the origin is named.
    """
    project_file = find_upwards(cwd)
    files = [(path, read_file(path)) for path in (project_file, user_file) if path is not None and path.is_file()]
    found = {}
    for setting in _ALL:
        found[setting.name] = _one(setting, flags, environ, cwd, files)
    for name, value in _derived(found, cwd).items():
        if found[name].value is None:
            found[name] = Value(value, "default")
    return found


def _one(
    setting: Setting, flags: Mapping[str, str], environ: Mapping[str, str], cwd: Path, files: list[tuple[Path, dict[str, Any]]]
) -> Value:
    if setting.name in flags:
        return _typed(setting, flags[setting.name], f"flag {setting.flag}", cwd)
    for variable in (setting.env, setting.also):
        if variable and environ.get(variable):
            return _typed(setting, environ[variable], f"environment {variable}", cwd)
    for path, body in files:
        if setting.name in body:
            return _typed(setting, body[setting.name], f"file {path}", path.parent)
    if setting.default is not None:
        return _typed(setting, setting.default, "default", cwd)
    return Value(None, "default")


def _typed(setting: Setting, raw: Any, origin: str, base: Path) -> Value:
    wanted = UserError(f"{setting.name} must be {_WANTED[setting.kind]}, got {raw!r}", cause=f"set by {origin}")
    if setting.kind == "int":
        if isinstance(raw, (bool, float)):
            raise wanted
        try:
            number = int(str(raw))
        except ValueError:
            raise wanted from None
        if number < 1:
            raise wanted
        return Value(number, origin)
    if setting.kind == "paths" and isinstance(raw, list) and all(isinstance(part, str) for part in raw):
        raw = os.pathsep.join(raw)
    if not isinstance(raw, str) or not raw or "\0" in raw:
        raise wanted
    if setting.kind == "paths":
        places = [os.path.normpath((base / Path(part).expanduser()).absolute()) for part in raw.split(os.pathsep) if part]
        return Value(os.pathsep.join(places), origin)
    if setting.kind == "path" or (setting.name == "artifacts" and "://" not in raw):
        path = (base / Path(raw).expanduser()).absolute()
        return Value(os.path.normpath(path) if setting.kind == "path" else Path(os.path.normpath(path)).as_uri(), origin)
    return Value(raw, origin)


_WANTED = {
    "int": "a whole number from 1 on",
    "path": "a path",
    "paths": f"paths, separated by {os.pathsep!r}",
    "uri": "a path or URI",
    "text": "a text",
}


def _derived(found: Mapping[str, Value], cwd: Path) -> dict[str, str]:
    """Defaults that follow from other settings; the same rules as ``sparsefleet.home``."""
    user_cache = (cwd / Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sparsefleet").absolute()
    cache, home = found["cache"].value or str(user_cache), found["home"].value
    return {
        "cache": cache,
        "data": str(Path(cache) / "data"),
        "artifacts": (Path(home) / "artifacts").as_uri(),
        "mlflow_uri": f"sqlite:///{home}/mlflow.db",
    }


def export(found: Mapping[str, Value], environ: MutableMapping[str, str] = os.environ) -> None:
    """Says in the environment what was decided, so that the library and every child process agree."""
    for setting in _ALL:
        value = found[setting.name]
        if setting.exported_as and value.origin != "default":
            environ[setting.exported_as] = str(value.value)
    environ["SPARSEFLEET_HOME"] = str(found["home"].value)  # a child may have another working folder


def said_again(found: Mapping[str, Value]) -> dict[str, str]:
    """The environment in which another process of this machine, in any folder, finds the same settings."""
    named = {"home": str(found["home"].value)}
    named |= {name: str(value.value) for name, value in found.items() if value.value is not None and value.origin != "default"}
    return {SETTINGS[name].env: value for name, value in named.items()}


def find_upwards(folder: Path) -> Path | None:
    """The nearest ``sparsefleet.toml`` in ``folder`` or above."""
    for place in (folder, *folder.parents):
        if (place / PROJECT_FILE).is_file():
            return place / PROJECT_FILE
    return None


def read_file(path: Path) -> dict[str, Any]:
    """The settings of one file.

    Raises:
        UserError: not TOML, or a key that is no setting.
    """
    body = read_toml(path)
    for key in body:
        if key not in SETTINGS:
            raise UserError(f"{path}: unknown setting {key!r}", fix=did_you_mean(key, SETTINGS))
    return body
