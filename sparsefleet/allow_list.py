"""Which plugin distributions may be imported: an optional TOML file that ``SPARSEFLEET_ALLOW_LIST`` names, on any machine of a fleet.

    [[allow]]
    distribution = "sf-saliency"
    version = "1.0"
    digest = "…"     # 64 hex digits, as `sparsefleet plugins allow sf-saliency` prints them

Without the setting every installed plugin may run. With it, one that is not listed, or whose files are others than listed, is shown and not
imported. sparsefleet's own distribution need not be listed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from sparsefleet.distributions import files_digest, module_of, normalised, points_of
from sparsefleet.errors import PluginError, UserError
from sparsefleet.toml_file import read_toml

VARIABLE = "SPARSEFLEET_ALLOW_LIST"
_OWN = {"sparsefleet", "sparsefleet_plugins"}
_KEYS = ("distribution", "version", "digest")


@dataclass(frozen=True)
class Allowed:
    """One distribution that may be imported."""

    distribution: str
    version: str
    digest: str


@dataclass(frozen=True)
class AllowList:
    """The entries of ``path``, by normalised name."""

    path: Path
    entries: Mapping[str, tuple[Allowed, ...]]

    def refusal(self, dist: metadata.Distribution) -> tuple[str, str] | None:
        """(state, reason) why ``dist`` may not be imported; None if it may."""
        name, version = str(dist.metadata["Name"]), dist.version
        listed = self.entries.get(normalised(dist), ())
        if not listed:
            if name == "sparsefleet" and {module_of(point).split(".")[0] for point in points_of(dist)} <= _OWN:
                return None
            return "unlisted", f"{name} is not in the allow-list {self.path}"
        if version not in (one.version for one in listed):
            return "unlisted", f"{name} {version} is not in the allow-list {self.path}; listed: {', '.join(one.version for one in listed)}"
        try:
            found = files_digest(dist)
        except (PluginError, OSError, ValueError) as error:
            return "altered", f"the files of {name} {version} cannot be read: {error}"
        wanted = [one.digest for one in listed if one.version == version]
        if found in wanted:
            return None
        return "altered", f"the files of {name} {version} have the digest {found[:12]}, the allow-list {self.path} says {wanted[0][:12]}"


def allow_list() -> AllowList | None:
    """The list that this machine enforces, or None.

    Raises:
        UserError: it is named and cannot be read or is not right; nothing is imported then.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    path = Path(named).expanduser().absolute()
    body = read_toml(path)
    if set(body) - {"allow"} or not isinstance(body.get("allow", []), list):
        raise UserError(f"{path} is not an allow-list", cause="it holds something else than [[allow]] tables", fix=_FIX)
    entries: dict[str, tuple[Allowed, ...]] = {}
    for number, item in enumerate(body.get("allow", []), start=1):
        one = _entry(item, f"{path}: entry {number}")
        name = re.sub(r"[-_.]+", "-", one.distribution).lower()
        entries[name] = (*entries.get(name, ()), one)
    return AllowList(path, entries)


_FIX = "sparsefleet plugins allow NAME prints an entry"


def _entry(item: Any, where: str) -> Allowed:
    if not isinstance(item, dict) or set(item) != set(_KEYS) or not all(isinstance(item[key], str) for key in _KEYS):
        raise UserError(f"{where} must have {', '.join(_KEYS)}, all texts", fix=_FIX)
    if not re.fullmatch(r"[0-9a-f]{64}", item["digest"]):
        raise UserError(f"{where}: digest must be 64 hex digits, got {item['digest'][:80]!r}", fix=_FIX)
    return Allowed(**item)
