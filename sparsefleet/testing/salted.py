"""A builtin ``hash`` that answers differently, as it does for texts in every other process."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_STABLE = (int, float, complex, type(None))


@contextmanager
def salted_hash(own: str, salt: int) -> Iterator[list[str]]:
    """In the block, calls of ``hash()`` from the package ``own`` give other numbers for each ``salt``, unless they hash numbers only.

    Args:
        own: top-level name of the plugin's package; other callers get what they always got, and so do its ``__hash__`` methods.

    Yields:
        The lines that called it, ``file:line in function``.
    """
    original, callers = builtins.hash, []

    def other(value: Any) -> int:
        frame = sys._getframe(1)
        code = frame.f_code
        mine = str(frame.f_globals.get("__name__", "")).partition(".")[0] == own and code.co_name != "__hash__"
        if not mine or _is_stable(value):
            return original(value)
        callers.append(f"{code.co_filename.rpartition('/')[2]}:{frame.f_lineno} in {code.co_name}")
        return original((salt, original(value)))

    builtins.hash = other
    try:
        yield callers
    finally:
        builtins.hash = original


def _is_stable(value: Any) -> bool:
    return all(map(_is_stable, value)) if isinstance(value, (tuple, frozenset)) else isinstance(value, _STABLE)
