"""The plugins that no other machine can fetch by name and version, as one file of the artifact store, named by its digest.

Editable, local and one-file plugins are such. The bundle is made when a sweep is submitted, and every trial of the sweep, also after
``resume`` and also on this machine, imports them from it: what runs is what the trial keys promise, whatever is edited meanwhile. It holds the
packages with a ``.dist-info`` each, because without one Python finds no entry points.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

from sparsefleet.catalogue import Catalog
from sparsefleet.distributions import files_of, is_local, normalised, with_plugins
from sparsefleet.errors import IntegrityError, PluginError, UserError
from sparsefleet.ledger.store import ArtifactStore, file_sha256
from sparsefleet.one_file import is_one_file_folder

MAX_BYTES = 64 << 20
_ARCHIVE = ".plugins.zip"
SAME_TIME = (1980, 1, 1, 0, 0, 0)


def make_bundle(catalog: Catalog, plugins: Iterable[str], store: ArtifactStore) -> dict[str, Any] | None:
    """Stores what the named plugins need and others cannot fetch: ``{"sha256":, "distributions": [[name, version], …]}``; None if that is nothing.

    Args:
        plugins: as ``family/name``; those that observe trials come along.

    Raises:
        UserError: it would be larger than 64 MiB.
    """
    local = local_plugins(catalog, plugins)
    if not local:
        return None
    with tempfile.TemporaryDirectory(prefix="sparsefleet-bundle-") as folder:
        path = Path(folder) / "plugins.zip"
        path.write_bytes(zipped(local))
        return {"sha256": store.put(path).sha256, "distributions": [[str(d.metadata["Name"]), d.version] for d in local]}


def local_plugins(catalog: Catalog, plugins: Iterable[str]) -> list[metadata.Distribution]:
    """What the named plugins need and other machines cannot fetch; what observes trials comes along."""
    asked = set(plugins)
    wanted = {e.distribution for e in catalog.entries if e.state == "ok" and (f"{e.family}/{e.name}" in asked or e.family == "hooks")}
    return [d for d in with_plugins() if str(d.metadata["Name"]) in wanted - {"sparsefleet"} and is_local(d)]


def zipped(dists: Sequence[metadata.Distribution]) -> bytes:
    """A zip file of the distributions: the same bytes for the same files, whenever and wherever they are made.

    Raises:
        UserError: it would be larger than 64 MiB.
    """
    out, n_bytes = io.BytesIO(), 0
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for dist in dists:
            info = f"{normalised(dist).replace('-', '_')[:100]}-{dist.version}.dist-info"
            texts = {f"{info}/{name}": dist.read_text(name) or "" for name in ("METADATA", "entry_points.txt")}
            bodies = {**{name: text.encode() for name, text in texts.items()}, f"{info}/INSTALLER": b"sparsefleet\n"}
            for name, path in files_of(dist).items():
                n_bytes += path.stat().st_size
                if n_bytes > MAX_BYTES:
                    raise UserError(
                        f"the files of {dist.metadata['Name']} are larger than {MAX_BYTES >> 20} MiB, too large to be sent to every node",
                        fix="keep data out of the package, or publish it and install it on every node",
                    )
                bodies[name] = path.read_bytes()
            _refuse_shadows(bodies)
            for name, body in sorted(bodies.items()):
                entry = zipfile.ZipInfo(name, SAME_TIME)
                entry.external_attr = 0o444 << 16
                archive.writestr(entry, body)
    return out.getvalue()


def unpacked(bundle: dict[str, Any], store: ArtifactStore, root: Path) -> Path:
    """The folder under ``root`` that holds the bundle, fetched and unpacked if it is not there yet.

    Raises:
        BackendUnreachable: the store does not answer or has lost it.
        IntegrityError: its bytes are not those of the digest, or are none that ``make_bundle`` writes.
        PluginError: it holds a module that would take another's place.
    """
    sha = str(bundle["sha256"])
    folder = root / "bundles" / sha[:32]
    if _is_whole(folder, sha):
        return folder
    part = folder.with_name(f"{folder.name}.{uuid4().hex[:8]}.part")
    part.mkdir(parents=True, mode=0o700)
    try:
        archive = store.get(sha, part / _ARCHIVE)
        with _opened(archive) as opened:
            _refuse_shadows(opened.namelist())
            if not any(name.endswith(".dist-info/entry_points.txt") for name in opened.namelist()):
                raise IntegrityError("a bundle of plugins is refused", cause="it holds no plugin")
            opened.extractall(part)
        if folder.is_dir() and not _is_whole(folder, sha):
            folder.rename(folder.with_name(f"{folder.name}.{uuid4().hex[:8]}.altered"))
        part.rename(folder)
    except OSError:
        if not _is_whole(folder, sha):  # else another process of this machine was first
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    """The archive, if what it would unpack is plain files of bounded size below where it is unpacked.

    Raises:
        IntegrityError: it is not, or is no archive.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = opened.infolist()
            outside = [e.filename for e in entries if e.filename.startswith(("/", "\\")) or ".." in PurePosixPath(e.filename).parts]
            special = [e.filename for e in entries if stat.S_IFMT(e.external_attr >> 16) not in (0, stat.S_IFREG)]
            if outside or special:
                raise IntegrityError(
                    "a bundle of plugins is refused", cause=f"{(outside + special)[0]!r} in it is no file below its own folder"
                )
            if sum(entry.file_size for entry in entries) > MAX_BYTES:
                raise IntegrityError("a bundle of plugins is refused", cause=f"it unpacks to more than {MAX_BYTES >> 20} MiB")
            yield opened
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeError) as error:
        raise IntegrityError("a bundle of plugins cannot be unpacked", cause=f"{type(error).__name__}: {error}") from error


def _is_whole(folder: Path, sha256: str) -> bool:
    """True if the archive is that of the digest and every file is there as in it: a cleaner or an editor may have been in the folder."""
    try:
        if file_sha256(folder / _ARCHIVE) != sha256:
            return False
        with _opened(folder / _ARCHIVE) as opened:
            return all((folder / name).read_bytes() == opened.read(name) for name in opened.namelist())
    except (OSError, IntegrityError):
        return False


def _refuse_shadows(names: Iterable[str]) -> None:
    """A bundle comes first on the search path: what Python or the product imports must not be found in it, whatever an allow-list says.

    Raises:
        PluginError: a file of it would be.
    """
    taken = {*sys.stdlib_module_names, "sitecustomize", "usercustomize", "sparsefleet", "sparsefleet_plugins", "torch"}
    for name in names:
        if name.split("/")[0].split(".")[0] in taken:
            raise PluginError(f"a local plugin brings {name}, which would take another module's place on the nodes", fix="rename it")


def import_path(bundle: Path | None, places: Iterable[str]) -> str:
    """``PYTHONPATH`` of a process that imports the bundle's plugins in place of whatever is installed or named here."""
    own = [str(bundle)] if bundle else []
    return os.pathsep.join([*own, *(place for place in places if place and not is_one_file_folder(place))])
