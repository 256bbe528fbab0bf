"""Reads a TOML file, on every Python that we run on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from sparsefleet.errors import UserError

_MOST_BYTES = 8 << 20


def read_toml(path: Path) -> dict[str, Any]:
    """The file's contents.

    Raises:
        UserError: it cannot be read, or is not TOML.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a regular file")
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes, at most {_MOST_BYTES:,} are read")
        body: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not TOML", cause=str(error)) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read", cause=error.strerror or str(error)) from error
    return body
