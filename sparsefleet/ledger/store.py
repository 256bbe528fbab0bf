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

from sparsefleet.errors import BackendUnreachable, IntegrityError, SparsefleetError, UserError

_CHUNK = 1 << 20


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

    Raises:
        UserError: the place is a web page's.
    """

    def __init__(self, uri: str) -> None:
        refuse_web(uri)
        self.uri = uri
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
        try:
            if self._local:
                _put_local(self._local, [(path, ref) for (_, path), ref in zip(files, refs, strict=True)])
            else:
                with _only_os_errors():
                    for (_, path), ref in zip(files, refs, strict=True):
                        self._put_remote(path, ref.sha256, ref.bytes)
        except OSError as error:
            raise BackendUnreachable(f"artifact store {self.uri} cannot be written", cause=str(error)) from error
        return refs

    def get(self, sha256: str, to: Path) -> Path:
        """Copy a file to the path ``to`` and return it.

        Raises:
            BackendUnreachable: the store has no such file or does not answer.
            IntegrityError: the stored bytes are not those of the digest; ``to`` is not written.
        """
        to.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = to.with_name(f"{to.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            if self._local:
                shutil.copyfile(self._local / _place(sha256), part)
            else:
                with _only_os_errors():
                    fs, root = self._remote()
                    fs.get_file(f"{root}/{_place(sha256)}", str(part))
            if file_sha256(part) != sha256:
                raise IntegrityError(
                    f"artifact {sha256[:12]} in {self.uri} does not match its digest", fix="delete it and run its trial again"
                )
            part.replace(to)
        except OSError as error:
            raise BackendUnreachable(f"artifact {sha256[:12]} cannot be read from {self.uri}", cause=str(error)) from error
        finally:
            part.unlink(missing_ok=True)
        return to

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


def _put_local(root: Path, files: Sequence[tuple[Path, ArtifactRef]]) -> None:
    """Copies first, then waits for the disk: the first wait carries most of the others along."""
    parts: dict[Path, Path] = {}
    try:
        for path, ref in files:
            final = root / _place(ref.sha256)
            if final in parts or (final.exists() and final.stat().st_size == ref.bytes):
                continue
            final.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            parts[final] = final.with_name(f"{final.name}.{uuid.uuid4().hex[:8]}.part")
            shutil.copyfile(path, parts[final])
            parts[final].chmod(0o600)
        for part in parts.values():
            _sync(part)  # files first, commit after: also when the machine loses power
        for final, part in parts.items():
            part.replace(final)
    finally:
        for part in parts.values():
            with suppress(OSError):
                part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
