"""Where things lie. Every place is a setting; nothing assumes one machine."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sparsefleet.errors import BackendUnreachable, UserError


def _private(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        from sparsefleet.space import means_no_space, min_free_mib, no_space

        if means_no_space(error):
            raise no_space(path, min_free_mib()) from error
        raise UserError(
            f"{path} cannot be made a folder", cause=error.strerror, fix="SPARSEFLEET_HOME and SPARSEFLEET_CACHE name other places"
        ) from error
    return path


def own_folder(path: Path) -> Path:
    """``path``, made 0700 if it is not there, where everybody may make folders: one that another user made first is not ours to use.

    Raises:
        BackendUnreachable: it is a link or no folder, belongs to someone else, or others have a right to it.
    """
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    mode = stat.S_IMODE(found.st_mode)
    why = "it is no folder" if not stat.S_ISDIR(found.st_mode) else ""
    why = why or (f"user {found.st_uid} made it, and we are {os.getuid()}" if found.st_uid != os.getuid() else "")
    why = why or (f"its mode is {mode:04o}, not 0700" if mode & 0o077 else "")
    if why:
        raise BackendUnreachable(
            f"{path} on {socket.gethostname()} is not used: other users could put files into it",
            cause=why,
            fix="remove it there, or start Ray on that node with a TMPDIR of your own",
        )
    return path


def keep_private() -> None:
    """Lets this process, and those that it starts, make files that only its user may read, whatever the umask was."""
    os.umask(0o077)


def write_private(path: Path, text: str) -> None:
    """Replaces the file at ``path`` as a whole; nobody else may read it.

    Raises:
        NoSpace: the disk is full; the former file is still there.
    """
    from sparsefleet.space import telling

    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with telling(path.parent):
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w", encoding="utf-8") as out:
                out.write(text)
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise


def home() -> Path:
    """State of this installation's sweeps: ``SPARSEFLEET_HOME``, else ``.sparsefleet`` in the working folder; absolute, created 0700."""
    return _private(Path(os.environ.get("SPARSEFLEET_HOME") or ".sparsefleet").expanduser().absolute())


def cache_dir() -> Path:
    """Rebuildable files shared by all homes: ``SPARSEFLEET_CACHE``, else the user's cache folder."""
    named = os.environ.get("SPARSEFLEET_CACHE")
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "sparsefleet"
    return _private(base.expanduser().absolute())


def data_root() -> Path:
    """Where data sets lie: ``SPARSEFLEET_DATA``, else ``data`` in the user's cache folder."""
    named = os.environ.get("SPARSEFLEET_DATA")
    return Path(named).expanduser().absolute() if named else cache_dir() / "data"


def local_store() -> list[Path]:
    """The folder of the artifact store in a list, if it is a folder of this machine."""
    parts = urlsplit(artifact_root())
    return [Path(unquote(parts.path)) if parts.scheme == "file" else Path(artifact_root())] if parts.scheme in ("", "file") else []


def artifact_root() -> str:
    """URI of the artifact store: ``SPARSEFLEET_ARTIFACTS`` (any fsspec URI), else a folder of the home."""
    return os.environ.get("SPARSEFLEET_ARTIFACTS") or _private(home() / "artifacts").as_uri()
