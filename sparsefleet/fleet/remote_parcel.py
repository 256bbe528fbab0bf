"""What a laptop sends along with a grid: the file, the plugins that no other machine can fetch, and what code it has itself.

Once unpacked on the head node::

    code.json           by what computes, e.g. ``core`` or ``pruner/rigl``: its digest, and how it is shown
    grid/my.yaml        absent for a grid that ships with sparsefleet
    plugins/            to be put on the search path: packages, each with its ``.dist-info``
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path

from sparsefleet.catalogue import Catalog, Entry
from sparsefleet.errors import VersionSkew
from sparsefleet.fleet.bundle import SAME_TIME, local_plugins, zipped
from sparsefleet.trial.identity import core_digest

CODE, GRID, PLUGINS = "code.json", "grid", "plugins"
_SHOWN = 12


def make_parcel(catalog: Catalog, plugins: Iterable[str], grid: Path | None) -> bytes:
    """The zip file; the same bytes for the same files.

    Args:
        plugins: those that are used, as ``family/name``.

    Raises:
        UserError: the plugins' files are larger than 64 MiB.
    """
    names = sorted(set(plugins))
    local = local_plugins(catalog, names)
    sent = {str(dist.metadata["Name"]) for dist in local}
    files = {CODE: json.dumps(_code(catalog, names, sent), sort_keys=True).encode()}
    if grid is not None:
        files[f"{GRID}/{grid.name}"] = grid.read_bytes()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as parcel:
        if local:
            with zipfile.ZipFile(io.BytesIO(zipped(local))) as bundle:
                files |= {f"{PLUGINS}/{name}": bundle.read(name) for name in bundle.namelist()}
        for name, body in sorted(files.items()):
            entry = zipfile.ZipInfo(name, SAME_TIME)
            entry.external_attr = 0o644 << 16  # which Ray sets when it unpacks
            parcel.writestr(entry, body)
    return out.getvalue()


def refuse_other_code(parcel: Path, catalog: Catalog) -> None:
    """Ends what would run other code on the cluster than its sender has.

    Raises:
        VersionSkew: what differs.
    """
    from sparsefleet import __version__

    code: dict[str, tuple[str, str]] = json.loads((parcel / CODE).read_text())
    differences = {}
    for what, (digest, shown) in code.items():
        if what == "core":
            found, text = core_digest(), _shown(f"sparsefleet {__version__}", core_digest())
        else:
            entry = _entry(catalog, what)
            found, text = (entry.digest, _entry_shown(entry)) if entry else ("", "not there")
        if found != digest:
            differences[what] = (shown, {"the cluster's head": text})
    if differences:
        raise VersionSkew(differences)


def _code(catalog: Catalog, names: Iterable[str], sent: set[str]) -> dict[str, tuple[str, str]]:
    """Of what is sent along nothing is promised: the head will have just that."""
    from sparsefleet import __version__

    code = {"core": (core_digest(), _shown(f"sparsefleet {__version__}", core_digest()))}
    for name in names:
        entry = _entry(catalog, name)
        if entry is not None and entry.distribution not in sent:
            code[name] = (entry.digest, _entry_shown(entry))
    return code


def _entry(catalog: Catalog, what: str) -> Entry | None:
    return next((e for e in catalog.entries if e.state == "ok" and f"{e.family}/{e.name}" == what), None)


def _entry_shown(entry: Entry) -> str:
    return _shown(f"{entry.distribution} {entry.version}", entry.digest)


def _shown(name: str, digest: str) -> str:
    return f"{name} ({digest[:_SHOWN]})"
