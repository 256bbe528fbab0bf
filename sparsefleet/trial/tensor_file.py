"""safetensors files: written piece by piece, since the library's own writer holds a copy of every tensor, and read as what anybody may have made."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sparsefleet.errors import IntegrityError

_MOST_HEADER_BYTES = 16 << 20
"""The library takes a hundred MiB of JSON, which is gigabytes once parsed. A thousand layers take half a MiB."""

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def read_tensors(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    Raises:
        IntegrityError: it is no such file, whatever it is.
    """
    try:
        refuse_header(path)
        return load_file(path, device=device)
    except (OSError, SafetensorError, ValueError, RuntimeError, KeyError, OverflowError) as error:
        raise IntegrityError(f"{path} is not a safetensors file", cause=f"{type(error).__name__}: {error}") from error


def refuse_header(path: Path) -> None:
    """Returns if the file may be given to the library.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or its header is too long.
    """
    if not path.is_file():
        raise ValueError("it is no regular file")
    with path.open("rb") as stream:
        n_header = int.from_bytes(stream.read(8), "little")
    if n_header > _MOST_HEADER_BYTES:
        raise ValueError(f"it announces a header of {n_header:,} bytes, at most {_MOST_HEADER_BYTES:,} are read")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes ``tensors`` as a safetensors file."""
    with path.open("wb") as stream:
        stream.writelines(serialised(tensors))


def serialised(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The safetensors file of ``tensors``, piece by piece."""
    header: dict[str, Any] = {}
    end = 0
    ordered = dict(
        sorted(tensors.items(), key=lambda item: -item[1].element_size())
    )  # so that each starts at a multiple of its element's size
    for name, value in ordered.items():
        start, end = end, end + value.numel() * value.element_size()
        header[name] = {"dtype": _DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for value in ordered.values():
        flat = value.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            yield flat.view(torch.uint8).numpy().data
