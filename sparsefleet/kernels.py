"""Whether the C kernels are there, told without importing torch."""

import functools
import os
import zlib
from pathlib import Path

SOURCE = Path(__file__).parent / "ops" / "kernels.c"
LIBRARY = SOURCE.with_name("_kernels.so")


def why_not() -> str:
    """Why the CPU kernels cannot be used; empty where they can."""
    if os.environ.get("SPARSEFLEET_KERNELS") == "off":
        return "SPARSEFLEET_KERNELS=off"
    if not LIBRARY.exists():
        return "the CPU kernels were not built: install a C compiler and reinstall sparsefleet"
    return "" if _is_fresh() else "the CPU kernels were built from another source: reinstall sparsefleet"


@functools.cache
def _is_fresh() -> bool:
    """Whether the library says that it was built from the source beside it."""
    return f"sparsefleet kernels {zlib.crc32(SOURCE.read_bytes()):08x}".encode() in LIBRARY.read_bytes()
