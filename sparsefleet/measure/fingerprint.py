"""The environment fingerprint."""

from __future__ import annotations

import platform
import sys
from typing import Any


def fingerprint() -> dict[str, Any]:
    """Facts about this machine."""
    import torch

    return {"python": sys.version.split()[0], "torch": torch.__version__, "kernel": platform.release()}
