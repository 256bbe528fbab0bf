"""The eight hostile artifacts of SE-01, each as a file at a given place. Whoever loads one as what it pretends to be leaves a canary, or is overrun."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

BOMB_MIB = 512


class Touch:
    """Pickled, it runs code where it is loaded."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(canaries() / self.name),)


def pickle_in_pt(path: Path) -> None:
    """As ``torch.save`` lays a file out."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"weight": Touch("pt")}, protocol=2))
        archive.writestr("archive/version", "3\n")


def plain_pickle(path: Path) -> None:
    """A bare pickle."""
    path.write_bytes(pickle.dumps(Touch("pkl")))


def mlmodel(path: Path) -> None:
    """MLflow's description of a model whose loader is the sender's own module; the module and a pickle lie beside it."""
    path.write_text(
        "artifact_path: model\nflavors:\n  python_function:\n    loader_module: canary_loader\n    code: .\n    data: python_model.pkl\n"
        "    python_model: python_model.pkl\nmlflow_version: 3.17.2\n"
    )
    shutil.copyfile(path, path.with_name("MLmodel"))
    path.with_name("canary_loader.py").write_text(f"import os\nos.mkdir({str(canaries() / 'mlmodel')!r})\n")
    path.with_name("python_model.pkl").write_bytes(pickle.dumps(Touch("mlmodel-data")))


def zip_slip(path: Path) -> None:
    """Entries that lead out of the folder, by name and over a link."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("../escaped", "../../escaped", "/tmp/sparsefleet-escaped", "a/../../../escaped"):
            archive.writestr(name, "out")
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/tmp")
        archive.writestr("link/sparsefleet-escaped", "out")


def huge_header(path: Path) -> None:
    """A safetensors file that announces 2^62 bytes of header, and one tensor of 2^60 elements in what there is."""
    header = json.dumps({"fc1.weight": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]}}).encode()
    path.write_bytes(struct.pack("<Q", 2**62) + header)


def bad_csr(path: Path) -> None:
    """Well-formed safetensors of a sparse layer whose indices point far outside of its weight: what uses them unchecked dies.

    Of a real file only the indices change; of a dense one, whose reader brings the indices, only what they point into.
    """
    import torch
    from safetensors.torch import load_file, save_file

    good = load_file(path) if path.suffix == ".safetensors" and path.is_file() else {}
    if good and not any(_is_index(value) for value in good.values()):
        bad = {name: value[:1, :1].clone() if value.dim() == 2 else value for name, value in good.items()}
    else:
        good = good or {"fc1.crow": torch.tensor([0, 4, 8]), "fc1.col": torch.arange(8), "fc1.values_": torch.ones(8)}
        bad = {name: torch.full_like(value, torch.iinfo(value.dtype).max) if _is_index(value) else value for name, value in good.items()}
    path.unlink(missing_ok=True)
    save_file(bad, path)


def _is_index(value: Any) -> bool:
    return value.dim() > 0 and not value.is_floating_point()


def symlink(path: Path) -> None:
    """A link to a device that never ends."""
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def bomb(path: Path) -> None:
    """Half a gibibyte in half a megabyte: a gzip file where one is expected, else a zip file."""
    zeros = bytes(1 << 20)
    if path.suffix == ".gz":
        member = gzip.compress(zeros, 1)
        path.write_bytes(gzip.compress(struct.pack(">HBBIII", 0, 8, 3, 60_000, 28, 28), 1) + member * BOMB_MIB)
        return
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open("big", "w", force_zip64=True) as entry:
        for _ in range(BOMB_MIB):
            entry.write(zeros)


ARTIFACTS: dict[str, Callable[[Path], None]] = {
    "pickle in .pt": pickle_in_pt,
    ".pkl": plain_pickle,
    "MLmodel": mlmodel,
    "zip-slip": zip_slip,
    "huge header": huge_header,
    "bad CSR": bad_csr,
    "symlink": symlink,
    "bomb": bomb,
}


def put(name: str, path: Path) -> None:
    """The artifact of that name at ``path``, in place of what was there."""
    if name == "bomb" and path.suffix != ".gz":  # it takes a second to make
        ready = canaries().parent / "bomb.zip"
        if not ready.exists():
            bomb(ready)
        path.unlink(missing_ok=True)
        shutil.copyfile(ready, path)
        return
    if name != "bad CSR":  # which may alter what stands there
        path.unlink(missing_ok=True)
    ARTIFACTS[name](path)


def canaries() -> Path:
    """The folder where code that ran leaves its mark."""
    return Path(os.environ["CANARIES"])
