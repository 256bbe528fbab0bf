"""User-defined connectivity: the sites stand in a file, for one layer, for several by name, or for all alike."""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    settled_by = "file"

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

    def check_layers(self, names: Sequence[str]) -> None:
        """Refuses sites for a layer that is not among ``names``: they would be left out without a word."""
        found = self._found()
        unknown = sorted(name for name in found if name and name not in names)
        if unknown:
            where = "layer" if self.layer else "the file"
            raise UserError(f"connectivity user: {where} names {', '.join(unknown)}; the model has {', '.join(names)}")

    def nnz_of(self, layer: str, shape: tuple[int, int], asked: int) -> int:
        """As many as the file has for the layer."""
        sites, most = self._sites(layer), shape[0] * shape[1]
        if sites is not None and sites.shape[1] > most:
            what = f"{self.file} has {sites.shape[1]:,} connections for layer {layer!r}, which has {most:,} sites"
            raise UserError(what, fix=None if self.layer else "layer: NAME says which layer they are for")
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

    def _found(self) -> Mapping[str, Tensor]:
        """Sites by layer; the empty name for those of every layer."""
        path = Path(self.file)
        found = _read(path, path.stat().st_mtime_ns if path.exists() else 0)
        if not self.layer:
            return found
        if len(found) > 1:
            raise UserError(
                f"{self.file} names its layers itself ({', '.join(sorted(found))}); layer: {self.layer} is for a file that names none"
            )
        return {self.layer: next(iter(found.values()))}

    def _sites(self, layer: str) -> Tensor | None:
        found = self._found()
        if "" not in found and layer not in found and self.others == "refuse":
            named = ", ".join(sorted(found))
            raise UserError(
                f"{self.file} has no connections for layer {layer!r}", cause=f"it has: {named}", fix="others: random draws them"
            )
        return found.get(layer, found.get(""))


@lru_cache(maxsize=1)
def _read(path: Path, _changed_ns: int) -> Mapping[str, Tensor]:
    """The tensors of the file by layer; the empty name for one that names none."""
    readers = {".npy": _npy, ".csv": _csv, ".safetensors": _safetensors}
    if path.suffix not in readers:
        raise UserError(f"{path}: connections are read from {_KINDS}")
    if path.exists() and not path.is_file():
        raise UserError(f"connectivity user: {path} is not a regular file")
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
    if not any(value.shape[1] for value in found.values()):
        raise UserError(f"{path} holds no connection")
    return found


def _npy(path: Path) -> Mapping[str, Tensor]:
    return {"": torch.from_numpy(np.load(path, allow_pickle=False))}


def _safetensors(path: Path) -> Mapping[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _csv(path: Path) -> Mapping[str, Tensor]:
    with path.open() as lines:
        header = [name.strip() for name in next(lines, "").split(",")]
        if header not in (["row", "col"], ["layer", "row", "col"]):
            raise ValueError(f"the first line must be row,col or layer,row,col, got {','.join(header)}")
        found: dict[str, array[int]] = {}
        for layer, row, col in _rows(lines, header):
            found.setdefault(layer, array("q")).extend((row, col))
    return {
        layer: torch.from_numpy(np.array(sites, dtype=np.int64).reshape(-1, 2).T) for layer, sites in (found or {"": array("q")}).items()
    }


def _rows(lines: Iterable[str], header: list[str]) -> Iterator[tuple[str, int, int]]:
    """(layer or nothing, row, column) of each line below the header that is not blank."""
    for number, line in enumerate(lines, 2):
        if not line.strip():
            continue
        parts = [part.strip() for part in line.split(",")]
        try:
            row, col = (int(part) for part in parts[-2:])
        except ValueError:
            parts = []
        if len(parts) != len(header):
            raise ValueError(f"line {number} must be {','.join(header)}, two whole numbers last, got {line.strip()[:60]!r}")
        yield parts[0] if len(parts) > 2 else "", row, col


@hookimpl
def sparsefleet_connectivities() -> list[type[Connectivity]]:
    """Registers this module's connectivity."""
    return [UserConnectivity]
