"""What a trial's result depends on besides its spec: code, data, device. Imports no torch while its caches are warm."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from sparsefleet import __version__, kernels
from sparsefleet.code_digest import module_digest, modules_in
from sparsefleet.errors import UserError
from sparsefleet.home import cache_dir, write_private
from sparsefleet.registry import Catalog, Registry
from sparsefleet.trial.record import RECORD_SCHEMA, PluginUsed
from sparsefleet.trial.spec import PluginRef, TrialSpec, digest


def plugins_of(spec: TrialSpec) -> Iterator[tuple[str, PluginRef]]:
    """(family, plugin) of everything that takes part in the computation."""
    yield "dataset", spec.dataset
    yield "model", spec.model
    yield "activation", spec.activation
    yield "layer", spec.layer
    if spec.method.pruner:
        yield "pruner", spec.method.pruner
        if spec.layer.name != "masked":
            yield "layer", PluginRef(name="masked")
    if spec.method.rewirer:
        yield "rewirer", spec.method.rewirer
        yield "connectivity", spec.connectivity


def code_of(spec: TrialSpec, catalog: Catalog) -> dict[str, str]:
    """Digests of the code that computes: the core's modules and each plugin; the versions of torch and of the libraries of others' plugins."""
    code = {"core": core_digest(), "torch": _torch_version()}
    for family, ref in plugins_of(spec):
        entry = catalog.get(family, ref.name)
        code[f"{family}/{ref.name}"] = entry.digest
        code |= {f"library/{name}": version for name, version in entry.libraries.items()}
    return code


@lru_cache(maxsize=1)
def core_digest() -> str:
    """Digest of every module of the core that a trial runs; the kernels too, which only the layer plugins import."""
    return digest([module_digest(name) for name in ("sparsefleet.trial.run", *modules_in("sparsefleet.ops"))])


@lru_cache(maxsize=1)
def _torch_version() -> str:
    """Reading a distribution's metadata takes milliseconds."""
    return metadata.version("torch")


def versions_of(spec: TrialSpec, catalog: Catalog) -> dict[str, str]:
    """For people: distribution and version behind the digests of ``code_of``."""
    names = {"core": f"sparsefleet {__version__}"}
    for family, ref in plugins_of(spec):
        entry = catalog.get(family, ref.name)
        names[f"{family}/{ref.name}"] = f"{entry.distribution} {entry.version}"
    return names


class Keys:
    """Trial keys: what results are cached under. Same key, same work, never run twice; any change of what a result depends on is a new key."""

    def __init__(self, catalog: Catalog, data_root: Path) -> None:
        self._catalog, self._data_root = catalog, data_root
        self._data: dict[str, str] = {}
        self._known: dict[str, str] = {}
        self._code: dict[tuple[tuple[str, str], ...], tuple[dict[str, str], dict[str, str]]] = {}
        self._classes: dict[str, str] = {}

    def request(self, spec: TrialSpec, threads: int, device: str) -> dict[str, Any]:
        """What a trial depends on besides its spec; goes into the record. Trials of the same plugins share its parts, which are not to be changed."""
        plugins = tuple((family, ref.name) for family, ref in plugins_of(spec))
        if plugins not in self._code:
            self._code[plugins] = code_of(spec, self._catalog), versions_of(spec, self._catalog)
        if device not in self._classes:
            self._classes[device] = device_class(device)
        code, versions = self._code[plugins]
        return {
            "code": code,
            "data": {name: self._data_of(family, ref) for name, family, ref in data_of(spec, self._catalog)},
            "threads": threads,
            "device": device,
            "device_class": self._classes[device],
            "data_root": str(self._data_root),
            "versions": versions,
        }

    def key(self, spec: TrialSpec, threads: int, device: str, start_key: str | None = None) -> str:
        """sha256 (hex) over the spec, the code, the data, the thread count and the class of the device.

        Args:
            start_key: the key of the trial whose weights this one starts from: what changes those changes this one.
        """
        body = spec.to_json()
        asked = digest([body, threads, device, start_key])
        if asked not in self._known:
            depends = {name: value for name, value in self.request(spec, threads, device).items() if name not in ("data_root", "versions")}
            self._known[asked] = digest({"spec": body, "record": RECORD_SCHEMA, "start": start_key, **depends})
        return self._known[asked]

    def _data_of(self, family: str, ref: PluginRef) -> str:
        slot = digest([family, ref.model_dump(mode="json")])
        if slot not in self._data:
            self._data[slot] = data_digest(ref, self._catalog, self._data_root, family)
        return self._data[slot]


def plugins_used(spec: TrialSpec, catalog: Catalog) -> list[PluginUsed]:
    """Each plugin that takes part, with its distribution, version and digest."""
    used = []
    for family, ref in plugins_of(spec):
        entry = catalog.get(family, ref.name)
        used.append(PluginUsed(family=family, name=ref.name, distribution=entry.distribution, version=entry.version, digest=entry.digest))
    return used


def data_of(spec: TrialSpec, catalog: Catalog) -> Iterator[tuple[str, str, PluginRef]]:
    """(name in the record, family, plugin) of everything that reads files."""
    yield spec.dataset.name, "dataset", spec.dataset
    if spec.method.rewirer and catalog.get("connectivity", spec.connectivity.name).facts.get("reads_files"):
        yield f"connectivity/{spec.connectivity.name}", "connectivity", spec.connectivity


def data_digest(reader: PluginRef, catalog: Catalog, root: Path, family: str = "dataset") -> str:
    """sha256 over the files that a plugin reads; remembered by their sizes and times, so an unchanged file is not read again.

    Raises:
        UserError: the files are not there.
    """
    entry = catalog.get(family, reader.name)
    slot = digest({family: reader.model_dump(), "code": entry.digest, "root": str(root)})
    store = cache_dir() / "data-digests"
    store.mkdir(exist_ok=True, mode=0o700)
    path = store / f"{slot}.json"
    known = _read_json(path)
    if known and all(_stat(Path(name)) == stat for name, stat in known["files"].items()):
        return str(known["digest"])
    files = [Path(file) for file in Registry(catalog).build(family, reader).files(root)]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise UserError(f"{family} {reader.name!r} is not complete under {root}", cause=f"missing: {', '.join(missing)}")
    sha = hashlib.sha256()
    folder = os.path.commonpath([file.parent for file in files]) if files else ""  # what a file is may stand in its folder's name
    for file in files:
        sha.update(file.relative_to(folder).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            sha.update(hashlib.file_digest(stream, "sha256").digest() if hasattr(hashlib, "file_digest") else _hash(stream))
    answer = {"digest": sha.hexdigest(), "files": {str(file): _stat(file) for file in files}}
    write_private(path, json.dumps(answer))
    return str(answer["digest"])


def _hash(stream: Any) -> bytes:
    sha = hashlib.sha256()
    while chunk := stream.read(1 << 20):
        sha.update(chunk)
    return sha.digest()


def _stat(file: Path) -> list[int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        stored: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):  # never seen, or half-written: hashed anew
        return None
    return stored


def device_class(device: str) -> str:
    """``cpu:<model>`` or ``cuda:<name>``: devices of one class give the same results for the same key.

    ``ATEN_CPU_CAPABILITY`` chooses other kernels on the same processor, so it belongs to the class where it is set; so does the lack of our own.
    """
    if device == "cpu":
        chosen = os.environ.get("ATEN_CPU_CAPABILITY")
        return f"cpu:{_cpu_model()}" + (f"/{chosen}" if chosen else "") + ("/no-kernels" if kernels.why_not() else "")
    import torch

    return f"cuda:{torch.cuda.get_device_name(torch.device(device))}"


@lru_cache(maxsize=1)
def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        import platform

        return platform.processor() or platform.machine()
    return "unknown"
