"""User-defined connectivity: the sites stand in a file, for one layer, for several by name, or for all alike."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sparsefleet import Connectivity, Rng, UserError, hookimpl

_KINDS = ".safetensors, .npy, .csv"


class UserConnectivity(Connectivity):
    """Reads ``(2, nnz)`` integers, outputs above inputs; a site out of range or given twice ends the trial with the count of such sites.

    ``.npy`` holds one array; ``.safetensors`` names a layer for each; ``.csv`` has the columns ``row,col`` or ``layer,row,col``. The density of the
    trial must be that of the sites, within 1 %.
    """

    name = "user"
    paper = "the argument connectivity of the package sparselinear"
    reads_files = True

    file: str = Field(min_length=1, description=f"{_KINDS}; a relative path starts at the folder of the data sets")
    layer: str = Field("", description="the layer that an unnamed tensor is for, e.g. fc1; empty: every layer")
    others: Literal["refuse", "random"] = Field(
        "refuse", description="layers without sites: an error, or random sites at the asked density"
    )

    def files(self, root: Path) -> Iterable[Path]:
        """The one file."""
        path = root / self.file
        if not path.is_file():
            raise UserError(f"connectivity user: {path} is not there", fix="give the full path, or one relative to --data")
        return [path]

    def located(self, root: Path) -> "UserConnectivity":
        """With the path under ``root``, unless it is a full one."""
        return self.model_copy(update={"file": str(root / self.file)})

    def nnz_of(self, layer: str, shape: tuple[int, int], asked: int) -> int:
        """As many as the file has for the layer."""
        sites = self._sites(layer)
        return asked if sites is None else sites.shape[1]

    def draw(self, shape: tuple[int, int], nnz: int, rng: Rng) -> Tensor:
        """``(2, nnz)`` as they stand in a file that names no layer."""
        return self.draw_for("", shape, nnz, rng)

    def draw_for(self, layer: str, shape: tuple[int, int], nnz: int, rng: Rng) -> Tensor:
        """``(2, nnz)`` as they stand in the file."""
        sites = self._sites(layer)
        if sites is None:
            flat = rng.distinct(nnz, shape[0] * shape[1])
            return torch.stack([flat // shape[1], flat % shape[1]])
        if sites.shape[1] != nnz:
            raise UserError(f"{self.file} has {sites.shape[1]:,} connections for layer {layer!r}, asked {nnz:,}")
        return sites

    def _sites(self, layer: str) -> Tensor | None:
        path = Path(self.file)
        found = _read(path, path.stat().st_mtime_ns if path.exists() else 0)
        if len(found) == 1 and (not next(iter(found)) or self.layer):
            found = {self.layer or layer: next(iter(found.values()))}
        if layer not in found and self.others == "refuse":
            named = ", ".join(sorted(found))
            raise UserError(
                f"{self.file} has no connections for layer {layer!r}", cause=f"it has: {named}", fix="others: random draws them"
            )
        return found.get(layer)


@lru_cache(maxsize=1)
def _read(path: Path, _changed_ns: int) -> Mapping[str, Tensor]:
    """The tensors of the file by layer; the empty name for one that names none."""
    readers = {".npy": _npy, ".csv": _csv, ".safetensors": _safetensors}
    if path.suffix not in readers:
        raise UserError(f"{path}: connections are read from {_KINDS}")
    try:
        raw = readers[path.suffix](path)
    except Exception as error:
        raise UserError(f"{path} cannot be read as {path.suffix}", cause=f"{type(error).__name__}: {error}") from error
    if not raw:
        raise UserError(f"{path} holds no tensor")
    found = {}
    for layer, value in raw.items():
        whole = isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
        if not whole or value.dim() != 2 or value.shape[0] != 2:
            got = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise UserError(f"{path}: connections{f' of {layer!r}' if layer else ''} must be integers of shape (2, nnz), got {got}")
        found[layer] = value.long()
    return found


def _npy(path: Path) -> Mapping[str, Tensor]:
    return {"": torch.from_numpy(np.load(path, allow_pickle=False))}


def _safetensors(path: Path) -> Mapping[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _csv(path: Path) -> Mapping[str, Tensor]:
    with path.open() as lines:
        header = [name.strip() for name in next(lines, "").split(",")]
        if header == ["row", "col"]:
            return {"": torch.from_numpy(np.loadtxt(lines, dtype=np.int64, delimiter=",", ndmin=2).T.reshape(2, -1))}
        if header != ["layer", "row", "col"]:
            raise ValueError(f"the first line must be row,col or layer,row,col, got {','.join(header)}")
        rows: dict[str, list[tuple[int, int]]] = {}
        for line in filter(str.strip, lines):
            layer, row, col = line.split(",")
            rows.setdefault(layer.strip(), []).append((int(row), int(col)))
        return {layer: torch.tensor(sites).T for layer, sites in rows.items()}


@hookimpl
def sparsefleet_connectivities() -> list[type[Connectivity]]:
    """Registers this module's connectivity."""
    return [UserConnectivity]
