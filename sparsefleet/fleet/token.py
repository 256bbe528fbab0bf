"""Ray's token: whoever holds it may run code on the cluster, and Ray writes it readable for everybody. Imports no ray."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def token_file() -> Path:
    """Where Ray looks for its token: ``RAY_AUTH_TOKEN_PATH``, else its own place in the user's home."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def open_token() -> str:
    """The token file and its mode if others may read or write it; empty if they may not, or there is none."""
    path = token_file()
    try:
        mode = path.stat().st_mode & 0o777
    except OSError:
        return ""
    return f"{path} has mode {mode:04o}" if mode & 0o077 else ""


def protect_token() -> None:
    """Takes the token away from everybody but its owner, if that is us."""
    path = token_file()
    with suppress(OSError):  # none there, or somebody else's, which is theirs to protect
        if path.stat().st_uid == os.getuid() and path.stat().st_mode & 0o077:
            path.chmod(0o600)
