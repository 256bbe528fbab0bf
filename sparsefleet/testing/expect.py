"""How a check says what is wrong: what was expected, what came, how to mend it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, TypeVar

_Check = TypeVar("_Check", bound=Callable[..., None])


class Nonconforming(AssertionError):
    """A plugin breaks a rule of the contract."""


def fail(expected: str, got: object, mend: str) -> NoReturn:
    """Raises Nonconforming."""
    raise Nonconforming(problem_text(expected, got, mend))


def problem_text(expected: str, got: object, mend: str) -> str:
    """The three lines of a finding."""
    return f"expected: {expected}\n  got:      {got}\n  mend:     {mend}"


def expect(ok: bool, expected: str, got: object, mend: str) -> None:
    """Raises Nonconforming unless ``ok``."""
    if not ok:
        fail(expected, got, mend)


def left_out_text(n: int) -> str:
    """The line on ``n`` checks that need a plugin that runs; empty if there are none."""
    return f"\n  {n} checks that use it were not run" if n else ""


def heavy(check: _Check) -> _Check:
    """Marks a check that takes more than about 2 s on a typical plugin: our own tests run it among the slow ones."""
    check.heavy = True  # type: ignore[attr-defined]
    return check
