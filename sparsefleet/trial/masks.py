"""The mask artifact: which weights of a trained net are connections, packed, digested, and readable with plain torch.

Two files, or one that carries its manifest as metadata (``pack_step``). ``masks.safetensors`` holds one tensor per layer; ``manifest.json`` says how to read it. A layer is stored as the smaller of

``bits``
    ``ceil(sites / 8)`` uint8, bit ``flat % 8`` of byte ``flat // 8`` (``numpy.unpackbits(t, bitorder="little")``);
``delta``
    ``(nnz,)`` of the narrowest of uint8, int16, int32, int64 that holds every gap; ``flat = torch.cumsum(t.long(), 0)``.

``flat`` are ascending positions in the weight of the given shape, read row by row. A layer's digest is over its shape and ``flat``, not over
the stored bytes: equal masks have equal digests however they are packed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from sparsefleet.errors import IntegrityError, InvalidMask
from sparsefleet.trial.files import MANIFEST, MASKS
from sparsefleet.trial.tensor_file import read_tensors, refuse_header

MASKS_SCHEMA = "sf-masks/1"
STEP_BYTES, STEP_SITES, STEP_NNZ = 1 << 20, 1 << 20, 1 << 18
"""Bounds of the connections that a trial keeps of one step: all layers together, and what a layer may have to be among them."""
_CHUNK = 1 << 22
_MANIFEST_LIMIT = 64 << 20
_WIDTHS = ((torch.uint8, 2**8 - 1), (torch.int16, 2**15 - 1), (torch.int32, 2**31 - 1), (torch.int64, 2**63 - 1))


class MaskMeta(TypedDict, total=False):
    """Where a mask comes from; ``method``, ``seed`` and ``step`` are required."""

    method: str
    seed: int
    step: int
    spec_id: str
    trial_key: str


_Mask = tuple[Sequence[int], Tensor]


class LayerMask(NamedTuple):
    """One layer's connections: the weight's shape and ``(nnz,)`` ascending int64 positions in it."""

    shape: tuple[int, ...]
    flat: Tensor


class LayerDiff(NamedTuple):
    """What separates two masks of one layer."""

    added: int
    removed: int
    kept: int


class PackedMasks(NamedTuple):
    """The two files' contents."""

    tensors: bytes
    manifest: dict[str, Any]

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Paths of ``masks.safetensors`` and ``manifest.json``; the manifest is written last."""
        masks, manifest = folder / MASKS, folder / MANIFEST
        masks.write_bytes(self.tensors)
        manifest.write_text(json.dumps(self.manifest, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
        return masks, manifest

    def one_file(self) -> bytes:
        """Both as one safetensors file, for ``read_step``."""
        tensors = load(self.tensors)
        return save(tensors, metadata={"schema": MASKS_SCHEMA, "manifest": json.dumps(self.manifest, sort_keys=True, allow_nan=False)})


def pack_masks(masks: Mapping[str, _Mask] | Iterable[tuple[str, _Mask]], meta: MaskMeta) -> PackedMasks:
    """The mask artifact of ``masks``, in memory O(nnz).

    Args:
        masks: by layer name: the weight's shape and its ``(nnz,)`` int64 positions, ascending and unique. Pairs of name and mask do as well;
            then only one layer's positions are held at a time.
        meta: where the masks come from.

    Raises:
        InvalidMask: positions of a wrong dtype or shape, out of range, out of order or twice.
    """
    missing = [key for key in ("method", "seed", "step") if key not in meta]
    if missing:
        raise InvalidMask(f"the mask's meta lacks {', '.join(missing)}")
    tensors: dict[str, Tensor] = {}
    layers: dict[str, dict[str, Any]] = {}
    for name, (shape, flat) in masks.items() if isinstance(masks, Mapping) else masks:
        sites = _check(name, tuple(shape), flat)
        flat = flat.detach().cpu()
        encoding, stored = _encode(flat, sites)
        tensors[name] = stored
        layers[name] = {
            "shape": list(shape),
            "nnz": flat.numel(),
            "encoding": encoding,
            "dtype": str(stored.dtype).removeprefix("torch."),
            "bytes": stored.numel() * stored.element_size(),
            "digest": layer_digest(shape, flat),
        }
    manifest = {
        "schema": MASKS_SCHEMA,
        "file": MASKS,
        **meta,
        "nnz": sum(layer["nnz"] for layer in layers.values()),
        "sites": sum(math.prod(layer["shape"]) for layer in layers.values()),
        "layers": layers,
        "digest": _total_digest(layers),
    }
    return PackedMasks(save(tensors, metadata={"schema": MASKS_SCHEMA}), manifest)


def pack_step(masks: Iterable[tuple[str, _Mask]], meta: MaskMeta, most_bytes: int = STEP_BYTES) -> bytes:
    """The connections at one step of the training, in one file: every layer that is small enough, input to output, until ``most_bytes``.

    A layer of more than 2^20 sites and more than 2^18 connections is left out, and so is what does not fit any more.

    Args:
        masks: pairs of layer name and mask, as for ``pack_masks``.
        most_bytes: of the packed positions.
    """
    chosen: dict[str, _Mask] = {}
    for name, (shape, flat) in masks:
        sites = math.prod(shape)
        if sites > STEP_SITES and flat.numel() > STEP_NNZ:
            continue
        least = min(_n_bytes(sites), flat.numel())
        if least <= most_bytes:
            _, stored = _encode(flat.detach().cpu(), sites)
            if stored.numel() * stored.element_size() <= most_bytes:
                most_bytes -= stored.numel() * stored.element_size()
                chosen[name] = (shape, flat)
    return pack_masks(chosen, meta).one_file()


def load_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the mask artifact in ``folder``.

    Raises:
        IntegrityError: unreadable, of another schema, or its total digest does not match its layers.
    """
    path = folder / MANIFEST
    try:
        if not path.is_file():
            raise ValueError("it is no regular file")
        if path.stat().st_size > _MANIFEST_LIMIT:
            raise IntegrityError(f"{path} is larger than {_MANIFEST_LIMIT >> 20} MiB")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["schema"] != MASKS_SCHEMA:
            raise IntegrityError(f"{path} has schema {manifest['schema']!r}, not {MASKS_SCHEMA!r}")
        total = _total_digest(manifest["layers"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{path} is not a mask manifest", cause=f"{type(error).__name__}: {error}") from error
    if total != manifest.get("digest"):
        raise IntegrityError(f"{path}: the total digest does not match its layers")
    return dict(manifest)


def load_masks(folder: Path) -> dict[str, LayerMask]:
    """Every layer's connections, after checking shapes, order, range, counts and digests.

    Raises:
        IntegrityError: anything of the artifact in ``folder`` is not as its manifest says.
    """
    described = load_manifest(folder)["layers"]
    path = folder / MASKS
    return _checked(read_tensors(path), described, path)


def read_step(path: Path) -> tuple[int, dict[str, LayerMask]]:
    """The step and the layers' connections of a file of ``pack_step``, checked as ``load_masks`` does.

    Raises:
        IntegrityError: the file is not as its manifest says.
    """
    try:
        refuse_header(path)
        with safe_open(path, framework="pt") as file:
            manifest = json.loads(file.metadata()["manifest"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  safe_open has no iterator
        step, described = int(manifest["step"]), dict(manifest["layers"])
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise IntegrityError(f"{path} cannot be read", cause=f"{type(error).__name__}: {error}") from error
    return step, _checked(tensors, described, path)


def _checked(tensors: Mapping[str, Tensor], described: Mapping[str, dict[str, Any]], path: Path) -> dict[str, LayerMask]:
    if set(tensors) != set(described):
        raise IntegrityError(f"{path} and its manifest name different layers: {sorted(set(tensors) ^ set(described))}")
    masks: dict[str, LayerMask] = {}
    for name, layer in described.items():
        try:
            shape = tuple(int(side) for side in layer["shape"])
            mask = LayerMask(shape, _decode(tensors[name], shape, layer))
            _check(name, *mask)
        except (InvalidMask, KeyError, TypeError, ValueError, ArithmeticError) as error:  # a side of 1e999 is infinite
            raise IntegrityError(f"{path}: layer {name!r} does not match its manifest", cause=str(error)) from error
        if mask.flat.numel() != layer.get("nnz") or layer_digest(*mask) != layer["digest"]:
            raise IntegrityError(f"{path}: layer {name!r} does not match its digest")
        masks[name] = mask
    return masks


def diff_masks(a: Mapping[str, LayerMask], b: Mapping[str, LayerMask]) -> dict[str, LayerDiff]:
    """Per layer, how many connections ``b`` adds to ``a``, how many it removes and how many both have.

    Raises:
        InvalidMask: the two are not masks of one model: other layers or other shapes.
    """
    if set(a) != set(b):
        raise InvalidMask(f"masks of different models: layers {sorted(set(a) ^ set(b))} are in one only")
    diffs = {}
    for name, (shape, before) in a.items():
        if tuple(shape) != tuple(b[name].shape):
            raise InvalidMask(f"layer {name!r}: shapes {tuple(shape)} and {tuple(b[name].shape)} differ")
        after = b[name].flat
        kept = int(torch.isin(after, before, assume_unique=True).sum())
        diffs[name] = LayerDiff(after.numel() - kept, before.numel() - kept, kept)
    return diffs


def layer_digest(shape: Sequence[int], flat: Tensor) -> str:
    """sha256 (hex) over the shape and the positions as little-endian int64."""
    hasher = hashlib.sha256(json.dumps([int(side) for side in shape]).encode())
    hasher.update(np.ascontiguousarray(flat.cpu().numpy(), dtype="<i8").data)
    return hasher.hexdigest()


def _total_digest(layers: Mapping[str, Mapping[str, Any]]) -> str:
    return hashlib.sha256(json.dumps([[name, layers[name]["digest"]] for name in sorted(layers)]).encode()).hexdigest()


def _n_bytes(sites: int) -> int:
    return -(-sites // 8)


def _check(name: str, shape: tuple[int, ...], flat: Tensor) -> int:
    """Number of sites; raises InvalidMask if ``flat`` cannot be positions of ``shape``."""
    sites = math.prod(shape)
    if not shape or min(shape) < 1 or sites >= 2**63:
        raise InvalidMask(f"layer {name!r}: {shape} is not the shape of a weight")
    if flat.dtype != torch.int64 or flat.dim() != 1:
        raise InvalidMask(f"layer {name!r}: positions must be (nnz,) int64, got {tuple(flat.shape)} {flat.dtype}")
    if flat.numel() == 0:
        return sites
    low, high = (int(end) for end in torch.aminmax(flat))
    if low < 0 or high >= sites:
        raise InvalidMask(f"layer {name!r}: positions lie in [{low}, {high}], outside the {sites} sites of {shape}")
    disordered = int((flat[1:] <= flat[:-1]).sum())
    if disordered:
        raise InvalidMask(f"layer {name!r}: {disordered} of {flat.numel()} positions are out of order or there twice")
    return sites


def _gaps(flat: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Differences to the position before, some at a time, each with the place of its first."""
    for start in range(0, flat.numel(), _CHUNK):
        before = flat[start - 1 : start] if start else torch.zeros(1, dtype=torch.int64)
        yield start, torch.diff(flat[start : start + _CHUNK], prepend=before)


def _encode(flat: Tensor, sites: int) -> tuple[str, Tensor]:
    widest = max((int(gaps.max()) for _, gaps in _gaps(flat)), default=0)
    dtype = next(dtype for dtype, limit in _WIDTHS if widest <= limit)
    if flat.numel() * dtype.itemsize < _n_bytes(sites):
        stored = torch.empty(flat.numel(), dtype=dtype)
        for start, gaps in _gaps(flat):
            stored[start : start + gaps.numel()] = gaps
        return "delta", stored
    present = np.zeros(sites, dtype=np.bool_)  # at most 64 * nnz bytes, or delta would have been smaller
    present[flat.numpy()] = True
    return "bits", torch.from_numpy(np.packbits(present, bitorder="little"))


def _decode(stored: Tensor, shape: tuple[int, ...], layer: Mapping[str, Any]) -> Tensor:
    if layer["dtype"] != str(stored.dtype).removeprefix("torch.") or stored.dim() != 1:
        raise InvalidMask(f"stored as {tuple(stored.shape)} {stored.dtype}, announced as {layer['dtype']}")
    if layer["encoding"] == "delta":
        if stored.dtype not in dict(_WIDTHS):
            raise InvalidMask(f"deltas cannot be {stored.dtype}")
        return torch.cumsum(stored.to(torch.int64), 0)
    if layer["encoding"] != "bits" or stored.dtype != torch.uint8:
        raise InvalidMask(f"unknown encoding {layer['encoding']!r} of {stored.dtype}")
    sites = math.prod(shape)
    if stored.numel() != _n_bytes(sites):
        raise InvalidMask(f"{stored.numel()} bytes of bits cannot cover {sites} sites")
    bits: NDArray[np.uint8] = np.unpackbits(stored.numpy(), bitorder="little")
    return torch.from_numpy(np.flatnonzero(bits))  # a bit set past the last site fails the range check
