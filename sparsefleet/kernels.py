"""Whether the C kernels are there and wanted, told without importing torch."""

import functools
import os
import zlib
from pathlib import Path

from sparsefleet.errors import UserError

SOURCE = Path(__file__).parent / "ops" / "kernels.c"
LIBRARY = SOURCE.with_name("_kernels.so")
VARIABLE = "SPARSEFLEET_KERNELS"
_OFF, _ON = ("off", "0", "false", "no"), ("", "on", "1", "true", "yes")


def is_off() -> bool:
    """Whether the user turned the CPU kernels off.

    Raises:
        UserError: the variable says neither on nor off.
    """
    value = os.environ.get(VARIABLE, "")
    if value.lower() not in _OFF + _ON:
        raise UserError(f"{VARIABLE} must be on or off, got {value!r}", fix=f"unset {VARIABLE}, which means on")
    return value.lower() in _OFF


def why_not() -> str:
    """Why the CPU kernels cannot be used; empty where they can.

    Raises:
        UserError: ``SPARSEFLEET_KERNELS`` says neither on nor off.
    """
    if is_off():
        return f"{VARIABLE}={os.environ[VARIABLE]}"
    if not LIBRARY.exists():
        return "the CPU kernels were not built: install a C compiler and reinstall sparsefleet"
    return "" if _is_fresh() else "the CPU kernels were built from another source: reinstall sparsefleet"


@functools.cache
def _is_fresh() -> bool:
    """Whether the library says that it was built from the source beside it."""
    return f"sparsefleet kernels {zlib.crc32(SOURCE.read_bytes()):08x}".encode() in LIBRARY.read_bytes()
