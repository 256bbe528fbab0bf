"""Reads the idx files of MNIST and its relatives, gzipped or not (format: yann.lecun.com/exdb/mnist, "FILE FORMATS")."""

import gzip
import math
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import torch
from torch import Tensor

from sparsefleet import TensorData, UserError

Split = Literal["train", "test"]
_STEM = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTE = 0x08
_MOST_BYTES = 1 << 30
"""Of one array; MNIST's pictures are 47 million."""


def find(folders: Sequence[Path], *, what: str, fix: str) -> dict[tuple[str, str], Path]:
    """The four files, keyed by (split, "images" or "labels"), from the first folder that holds all of them.

    Raises:
        UserError: no folder does; the message names the folders and ``fix``.
    """
    lacking: list[list[str]] = []
    for folder in folders:
        found = {(split, kind): _either(folder, split, kind) for split in _STEM for kind in ("images", "labels")}
        if all(path is not None for path in found.values()):
            return {key: path for key, path in found.items() if path is not None}
        lacking.append([f"{_name(*key)} or {_name(*key)}.gz" for key, path in found.items() if path is None])
    tried = " or ".join(str(folder) for folder in folders)
    raise UserError(f"{what} is not in {tried}", cause=f"missing: {', '.join(min(lacking, key=len))}", fix=fix)


def load(files: dict[tuple[str, str], Path], split: Split, *, mean: float, std: float) -> TensorData:
    """Images ``(n, 1, 28, 28)`` float32, scaled to [0, 1], then ``(x - mean) / std``; labels ``(n,)`` int64.

    Raises:
        UserError: a file is damaged, or images and labels differ in number.
    """
    images = read(files[split, "images"], n_dims=3)
    labels = read(files[split, "labels"], n_dims=1)
    if tuple(images.shape[1:]) != (28, 28):
        raise UserError(f"{files[split, 'images']}: images must be 28 x 28, got {images.shape[1]} x {images.shape[2]}")
    if len(images) != len(labels):
        raise UserError(f"{files[split, 'labels']}: {len(labels)} labels for {len(images)} images")
    if len(labels) and int(labels.max()) > 9:
        raise UserError(f"{files[split, 'labels']}: labels must be 0 to 9, got {int(labels.max())}")
    x = images.unsqueeze(1).float().div_(255).sub_(mean).div_(std)
    return TensorData(x, labels.long())


def read(path: Path, *, n_dims: int) -> Tensor:
    """The uint8 array of ``path``, whose header must announce unsigned bytes in ``n_dims`` dimensions and exactly the bytes that follow.

    Raises:
        UserError: the file is not that; the message names it and says what was found.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _read(file, path, n_dims)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged gzip file", cause=str(error), fix="download it again") from error


def _read(file: "gzip.GzipFile | BinaryIO", path: Path, n_dims: int) -> Tensor:
    header = file.read(4 + 4 * n_dims)
    if len(header) != 4 + 4 * n_dims or header[:2] != b"\0\0" or header[2] != _UNSIGNED_BYTE or header[3] != n_dims:
        wanted = bytes([0, 0, _UNSIGNED_BYTE, n_dims]).hex()
        raise UserError(f"{path}: not an idx file of bytes in {n_dims} dimensions: starts with {header[:4].hex()!r}, expected {wanted!r}")
    shape = [int.from_bytes(header[4 * i : 4 * i + 4], "big") for i in range(1, n_dims + 1)]
    n_bytes = math.prod(shape)
    if n_bytes > _MOST_BYTES:
        raise UserError(f"{path}: the header announces {n_bytes:,} bytes, at most {_MOST_BYTES:,} are read")
    body = file.read(n_bytes + 1)  # a few packed bytes may stand for any number
    if len(body) != n_bytes:
        found = "more" if len(body) > n_bytes else str(len(body))
        raise UserError(f"{path}: the header announces {n_bytes} bytes ({' x '.join(map(str, shape))}), {found} follow")
    return torch.frombuffer(bytearray(body), dtype=torch.uint8).view(shape) if body else torch.empty(shape, dtype=torch.uint8)


def _name(split: str, kind: str) -> str:
    return f"{_STEM[split]}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"


def _either(folder: Path, split: str, kind: str) -> Path | None:
    name = _name(split, kind)
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def digest_files(files: dict[tuple[str, str], Path]) -> Iterable[Path]:
    """The files in a fixed order."""
    return [files[key] for key in sorted(files)]
