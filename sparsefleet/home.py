"""Where things lie. Every place is a setting; nothing assumes one machine."""

from __future__ import annotations

import os
from pathlib import Path

from sparsefleet.errors import UserError


def _private(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UserError(
            f"{path} cannot be made a folder", cause=error.strerror, fix="SPARSEFLEET_HOME and SPARSEFLEET_CACHE name other places"
        ) from error
    return path


def home() -> Path:
    """State of this installation's sweeps: ``SPARSEFLEET_HOME``, else ``.sparsefleet`` in the working folder; absolute, created 0700."""
    return _private(Path(os.environ.get("SPARSEFLEET_HOME") or ".sparsefleet").expanduser().absolute())


def cache_dir() -> Path:
    """Rebuildable files shared by all homes: ``SPARSEFLEET_CACHE``, else the user's cache folder."""
    named = os.environ.get("SPARSEFLEET_CACHE")
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "sparsefleet"
    return _private(base.expanduser().absolute())


def data_root() -> Path:
    """Where data sets lie: ``SPARSEFLEET_DATA``, else ``data`` in the user's cache folder."""
    named = os.environ.get("SPARSEFLEET_DATA")
    return Path(named).expanduser().absolute() if named else cache_dir() / "data"


def artifact_root() -> str:
    """URI of the artifact store: ``SPARSEFLEET_ARTIFACTS`` (any fsspec URI), else a folder of the home."""
    return os.environ.get("SPARSEFLEET_ARTIFACTS") or _private(home() / "artifacts").as_uri()
