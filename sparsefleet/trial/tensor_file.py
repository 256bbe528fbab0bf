"""Writes safetensors files piece by piece: the library's own writer holds a copy of every tensor, which a wide network has no memory for."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
