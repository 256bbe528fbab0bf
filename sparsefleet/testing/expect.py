"""How a check says what is wrong: what was expected, what came, how to mend it."""

from __future__ import annotations

from typing import NoReturn


class Nonconforming(AssertionError):
    """A plugin breaks a rule of the contract."""


def fail(expected: str, got: object, mend: str) -> NoReturn:
    """Raises Nonconforming."""
    raise Nonconforming(f"expected: {expected}\n  got:      {got}\n  mend:     {mend}")


def expect(ok: bool, expected: str, got: object, mend: str) -> None:
    """Raises Nonconforming unless ``ok``."""
    if not ok:
        fail(expected, got, mend)
