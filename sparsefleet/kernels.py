"""Whether the C kernels are there, told without importing torch."""

import os
from pathlib import Path

LIBRARY = Path(__file__).parent / "ops" / "_kernels.so"


def why_not() -> str:
    """Why the CPU kernels cannot be used; empty where they can."""
    if os.environ.get("SPARSEFLEET_KERNELS") == "off":
        return "SPARSEFLEET_KERNELS=off"
    return "" if LIBRARY.exists() else "the CPU kernels were not built: install a C compiler and reinstall sparsefleet"
