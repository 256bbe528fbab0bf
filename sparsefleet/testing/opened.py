"""Which files are opened, by an audit hook, which sees all that Python opens and cannot be taken away again."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_watched: list[tuple[str, set[Path]]] = []
_hooked: list[bool] = []


@contextmanager
def opened_below(root: Path) -> Iterator[set[Path]]:
    """The files below ``root`` that are opened in the block, resolved."""
    if not _hooked:
        _hooked.append(True)
        sys.addaudithook(_note)
    watch = str(root.resolve()) + os.sep, set[Path]()
    _watched.append(watch)
    try:
        yield watch[1]
    finally:
        _watched.remove(watch)


def _note(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and _watched and isinstance(args[0], str | os.PathLike):
        path = os.path.realpath(os.fspath(args[0]))
        if not isinstance(path, str) or os.path.isdir(path):
            return
        for root, found in _watched:
            if path.startswith(root):
                found.add(Path(path))
