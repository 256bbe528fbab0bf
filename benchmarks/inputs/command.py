"""The command line inside this process: what it says and its exit code, for inputs by the hundred."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

from sparsefleet.cli.app import cli


class Said(NamedTuple):
    """An exit code, and stdout and stderr together."""

    code: int
    text: str


def command(*arguments: str) -> Said:
    """How a command line ends; an exception is a code of 1 with its traceback in a file, as for a user."""
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        code = cli.main(list(arguments), standalone_mode=False, prog_name="sparsefleet")
    return Said(int(code or 0), out.getvalue())
