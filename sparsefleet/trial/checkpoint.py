"""Checkpoints inside a trial: safetensors with a digest, replaced atomically; a damaged one is set aside, never used."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sparsefleet.crash_points import passing
from sparsefleet.errors import IntegrityError
from sparsefleet.trial.tensor_file import read_tensors, serialised

FILE = "checkpoint.safetensors"
SIDE = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a trial needs to go on: tensors by slash-separated name, and plain facts."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Tensors under ``prefix/``, by the rest of their name."""
        return {name.removeprefix(f"{prefix}/"): value for name, value in self.tensors.items() if name.startswith(f"{prefix}/")}


def save_checkpoint(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Writes both files, the tensors first; a crash in between leaves the former pair or a pair that does not match.

    The first line of the second file is the digest of the rest of it, where the digest of the first file stands.
    """
    sha = hashlib.sha256()
    _replace(folder / FILE, serialised(tensors), sha)
    passing("checkpoint-between")
    side = json.dumps({"sha256": sha.hexdigest(), "facts": facts}, allow_nan=False).encode()
    _replace(folder / SIDE, [hashlib.sha256(side).hexdigest().encode(), b"\n", side])


def _replace(path: Path, parts: Iterable[bytes | memoryview], sha: Any = None) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            for part in parts:
                stream.write(part)
                if sha is not None:
                    sha.update(part)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # it is there still if the disk is full


def load_checkpoint(folder: Path, trial_key: str) -> tuple[Checkpoint | None, str | None]:
    """The checkpoint of ``folder``, and a warning if there was one that could not be used.

    Args:
        trial_key: whose checkpoint it must be: changed code, data or settings start anew.
    """
    path, side_path = folder / FILE, folder / SIDE
    if not (path.exists() and side_path.exists()):
        return None, None
    try:
        if not (path.is_file() and side_path.is_file()):
            raise ValueError("it is no regular file")
        digest, _, text = side_path.read_bytes().partition(b"\n")
        if hashlib.sha256(text).hexdigest().encode() != digest:
            raise ValueError("its facts do not match their digest")
        side = json.loads(text)
        if _digest(path) != side["sha256"]:
            raise ValueError("its digest does not match")
        if side["facts"]["trial_key"] != trial_key:
            raise ValueError("it belongs to another trial key")
        return Checkpoint(read_tensors(path), side["facts"]), None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, IntegrityError) as error:
        put_aside(folder)
        return None, f"checkpoint set aside and training started anew: {error}"


def put_aside(folder: Path) -> None:
    """Moves a checkpoint that is of no use out of the way, to be looked at."""
    for name in (FILE, SIDE):
        (folder / name).replace(folder / f"{name}.damaged")


def _digest(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while part := stream.read(1 << 20):
            sha.update(part)
    return sha.hexdigest()


def drop_checkpoint(folder: Path) -> None:
    """Removes the checkpoint of a finished trial."""
    for name in (FILE, SIDE):
        (folder / name).unlink(missing_ok=True)
