"""Files of a trial that come from elsewhere, so that nothing they say is believed: a folder somebody sent, or MLflow's. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sparsefleet.errors import UserError
from sparsefleet.trial.record import Record
from sparsefleet.trial.spec import TrialSpec

_MOST_JSON_BYTES = 64 << 20
_SHOWN = 3


def own_file(path: Path, folder: Path) -> Path:
    """``path``, if it is a regular file of the folder: a link that leads out of it would have us read what whoever made it cannot.

    Raises:
        UserError: it is not.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a regular file")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path} leads out of {folder}", fix="put the file itself there")
    return path


def read_spec(path: Path, folder: Path) -> dict[str, Any]:
    """The spec of the folder's trial, as plain JSON values.

    Raises:
        UserError: it is none.
    """
    return _read(path, folder, TrialSpec)


def read_record(path: Path, folder: Path) -> dict[str, Any]:
    """The record of the folder's trial, as plain JSON values.

    Raises:
        UserError: it is none.
    """
    return _read(path, folder, Record)


def _read(path: Path, folder: Path, kind: type[TrialSpec] | type[Record]) -> dict[str, Any]:
    what = "a trial's spec" if kind is TrialSpec else "a trial's record"
    try:
        size = own_file(path, folder).stat().st_size
        if size > _MOST_JSON_BYTES:
            raise UserError(f"{path} has {size:,} bytes, at most {_MOST_JSON_BYTES:,} are read")
        return kind.model_validate(json.loads(path.read_text(encoding="utf-8-sig"))).to_json()
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc'])) or 'all of it'}: {e['msg']}" for e in error.errors()]
        raise UserError(f"{path} is not {what}", cause="; ".join(wrong[:_SHOWN])) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not {what}", cause=f"{type(error).__name__}: {error}") from error
