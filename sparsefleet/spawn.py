"""Processes that run this very package, and not another copy of it that lies in the working directory."""

from __future__ import annotations

import sys
from pathlib import Path

import sparsefleet
from sparsefleet.errors import UserError

_START = "import runpy, sys; del sys.path[0], sys.argv[0]; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"


def module_command(name: str, *arguments: str, has_flag: bool = sys.version_info >= (3, 11)) -> list[str]:
    """The command that runs a module without looking for it in the working directory first, as ``python -m`` does.

    Args:
        has_flag: whether this Python knows ``-P``.
    """
    return [sys.executable, *(("-P", "-m") if has_flag else ("-c", _START)), name, *arguments]


def refuse_other_copies(folder: Path) -> None:
    """Ends what would let Ray's workers import the sources in ``folder``: they look there first, and find them without the C kernels.

    Raises:
        UserError: another copy of this package lies there.
    """
    other, own = (folder / "sparsefleet").resolve(), Path(sparsefleet.__file__).resolve().parent
    if (other / "__init__.py").is_file() and other != own:
        raise UserError(
            f"{folder} holds another copy of sparsefleet than the installed one in {own}, and Ray's workers would import it",
            fix="go to another folder, or install the copy itself: pip install -e .",
        )
