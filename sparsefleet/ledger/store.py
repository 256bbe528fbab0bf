"""Files by the sha256 of their bytes, behind any fsspec URI. A file is there completely or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sparsefleet.crash_points import passing
from sparsefleet.errors import BackendUnreachable, IntegrityError, SparsefleetError, UserError
from sparsefleet.space import means_no_space, min_free_mib, no_space

_CHUNK = 1 << 20
QUARANTINE = "quarantine"
"""Beside the stored files, the folder of those that were not what they should be."""


@dataclass(frozen=True)
class ArtifactRef:
    """A stored file: what it is called, and its digest and size."""

    name: str
    sha256: str
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as ``sparsefleet.trial.record.ArtifactRef`` reads them."""
        return asdict(self)


class ArtifactStore:
    """A store at ``uri``. A plain path or ``file:`` needs nothing; any other URI needs the fsspec package for its protocol.

    Args:
        spool: where files lie that the store has not got yet; see ``sparsefleet.ledger.spool``.

    Raises:
        UserError: the place is a web page's.
    """

    def __init__(self, uri: str, spool: Path | None = None) -> None:
        refuse_web(uri)
        self.uri, self.spool = uri, spool
        parts = urlsplit(uri)
        self._local = Path(unquote(parts.path) if parts.scheme == "file" else uri) if parts.scheme in ("", "file") else None

    def put(self, path: Path, name: str | None = None) -> ArtifactRef:
        """Store a file; one with the same bytes is stored once.

        Raises:
            BackendUnreachable: the store cannot be written.
        """
        return self.put_all([(name or path.name, path)])[0]

    def put_all(self, files: Sequence[tuple[str, Path]]) -> list[ArtifactRef]:
        """Store files by (name, path); all of them are durable when it returns.

        Raises:
            BackendUnreachable: the store cannot be written.
        """
        refs = [ArtifactRef(name, file_sha256(path), path.stat().st_size) for name, path in files]
        self._put([(path, ref.sha256, ref.bytes) for (_, path), ref in zip(files, refs, strict=True)])
        return refs

    def put_as(self, path: Path, sha256: str) -> None:
        """Store a file whose digest is known.

        Raises:
            BackendUnreachable: the store cannot be written.
        """
        self._put([(path, sha256, path.stat().st_size)])

    def _put(self, files: Sequence[tuple[Path, str, int]]) -> None:
        try:
            if self._local:
                _put_local(self._local, files)
            else:
                with _only_os_errors():
                    for path, sha256, size in files:
                        self._put_remote(path, sha256, size)
        except OSError as error:
            raise BackendUnreachable(f"artifact store {self.uri} cannot be written", cause=str(error)) from error

    def get(self, sha256: str, to: Path) -> Path:
        """Copy a file to the path ``to`` and return it.

        Raises:
            BackendUnreachable: the store has no such file or does not answer.
            IntegrityError: the stored bytes are not those of the digest: they are moved aside, and ``to`` is not written.
        """
        to.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = to.with_name(f"{to.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            try:
                self._fetch(sha256, part)
            except OSError as error:
                if not self._from_spool(sha256, part):
                    if means_no_space(error):
                        raise no_space(to.parent, min_free_mib()) from error
                    raise BackendUnreachable(f"artifact {sha256[:12]} cannot be read from {self.uri}", cause=str(error)) from error
            if file_sha256(part) != sha256 and not self._from_spool(sha256, part):
                raise IntegrityError(
                    f"artifact {sha256[:12]} in {self.uri} does not match its digest",
                    cause=f"it was moved to {self.quarantine(sha256)}",
                    fix="sparsefleet resume SWEEP runs its trial again",
                )
            part.replace(to)
        finally:
            part.unlink(missing_ok=True)
        return to

    def _fetch(self, sha256: str, part: Path) -> None:
        if self._local:
            place = self._local / _place(sha256)
            if place.exists() and not place.is_file():
                raise OSError(f"{place} is no regular file")
            shutil.copyfile(place, part)
        else:
            with _only_os_errors():
                fs, root = self._remote()
                fs.get_file(f"{root}/{_place(sha256)}", str(part))

    def _from_spool(self, sha256: str, part: Path) -> bool:
        """True if the file waits in the spool, whole, and was copied from there."""
        if self.spool is None or not (self.spool / _place(sha256)).is_file():
            return False
        shutil.copyfile(self.spool / _place(sha256), part)
        return file_sha256(part) == sha256

    def quarantine(self, sha256: str) -> str:
        """Moves a file that is not what it should be out of the way, so that the right one can take its place; where it then lies."""
        if self._local:
            return str(set_aside(self._local / _place(sha256), self._local))
        fs, root = self._remote()
        place = f"{root}/{QUARANTINE}/{sha256}.{uuid.uuid4().hex[:8]}"
        fs.makedirs(place.rsplit("/", 1)[0], exist_ok=True)
        fs.mv(f"{root}/{_place(sha256)}", place)
        return place

    def has(self, sha256: str) -> bool:
        """False if neither a local store nor the spool has a file of that name; its bytes are not looked at. Others are believed to have it."""
        places = [place for place in (self._local, self.spool) if place is not None]
        return self._local is None or any((place / _place(sha256)).is_file() for place in places)

    def is_whole(self, sha256: str) -> bool:
        """False if a local store and the spool have no such file, or another one in its place, which is then moved aside."""
        if not self._local:
            return True
        found = [place / _place(sha256) for place in (self._local, self.spool) if place is not None and (place / _place(sha256)).is_file()]
        wrong = [path for path in found if file_sha256(path) != sha256]
        for path in wrong:
            set_aside(path, path.parent.parent)
        return len(wrong) < len(found)

    def _remote(self) -> tuple[Any, str]:
        import fsspec

        try:
            fs, root = fsspec.core.url_to_fs(self.uri)
        except ImportError as error:
            raise BackendUnreachable(
                f"artifact store {self.uri} needs a package that is not installed", cause=str(error), fix="pip install 'sparsefleet[s3]'"
            ) from error
        return fs, root.rstrip("/")

    def _put_remote(self, path: Path, digest: str, size: int) -> None:
        fs, root = self._remote()
        final = f"{root}/{_place(digest)}"
        if fs.exists(final) and fs.size(final) == size:
            return
        fs.makedirs(final.rsplit("/", 1)[0], exist_ok=True)
        part = f"{final}.{uuid.uuid4().hex[:8]}.part"
        fs.put_file(str(path), part)
        fs.mv(part, final)


@contextmanager
def _only_os_errors() -> Iterator[None]:
    """What a client library raises when its server is away, botocore for one, need not be an OSError."""
    try:
        yield
    except (OSError, SparsefleetError):
        raise
    except Exception as error:
        raise OSError(str(error)) from error


def refuse_web(uri: str) -> None:
    """Return if files may lie at ``uri``.

    Raises:
        UserError: it is an address of the web: whoever names it would make us fetch from any host that we reach.
    """
    if is_web(uri):
        raise UserError(
            f"artifacts cannot lie at {uri!r}",
            cause="http, https and ftp are not stores of files",
            fix="use a path, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER; an MLflow server with --serve-artifacts takes them itself",
        )


def is_web(uri: str) -> bool:
    """True for an address of the web, also behind another protocol's name."""
    return any(urlsplit(part).scheme in ("http", "https", "ftp") for part in uri.lower().split("::"))


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _place(digest: str) -> str:
    return f"{digest[:2]}/{digest}"


def set_aside(path: Path, root: Path) -> Path:
    """Where the file lies now: in the quarantine of ``root``."""
    folder = root / QUARANTINE
    folder.mkdir(exist_ok=True, mode=0o700)
    aside = folder / f"{path.name}.{uuid.uuid4().hex[:8]}"
    with suppress(FileNotFoundError):  # another process was first
        path.replace(aside)
    return aside


def _put_local(root: Path, files: Sequence[tuple[Path, str, int]]) -> None:
    """Copies first, then waits for the disk: the first wait carries most of the others along."""
    parts: dict[Path, Path] = {}
    try:
        for path, sha256, size in files:
            final = root / _place(sha256)
            if final in parts or _is_there(final, sha256, size, root):
                continue
            for folder in (root, final.parent):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            parts[final] = final.with_name(f"{final.name}.{uuid.uuid4().hex[:8]}.part")
            shutil.copyfile(path, parts[final])
            parts[final].chmod(0o600)
        for part in parts.values():
            _sync(part)  # files first, commit after: also when the machine loses power
        for final, part in parts.items():
            passing("store-renaming")
            part.replace(final)
    finally:
        for part in parts.values():
            with suppress(OSError):
                part.unlink(missing_ok=True)


def _is_there(final: Path, sha256: str, size: int, root: Path) -> bool:
    """True if the file is stored and whole; what lies there in its place is moved aside."""
    if not final.exists():
        return False
    if final.stat().st_size == size and file_sha256(final) == sha256:
        return True
    set_aside(final, root)
    return False


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
