"""What every side of a case computes with: connections, inputs, output gradients, and the answers in float64.

The answers come from scipy and numpy, whose code none of the sides shares; never out × in. They are made once per shape and read by the
process of each side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.sparse import csr_array
from torch import Tensor

from benchmarks.ops.cases import Shape
from sparsefleet.connections import Connections
from sparsefleet.rng import Rng

N_INPUTS = 4
_CHUNK = 1 << 18
"""Connections whose weight gradients are made at a time."""


@dataclass(frozen=True)
class Problem:
    """One matrix and what it is multiplied with.

    Attributes:
        inputs: ``N_INPUTS`` of ``(batch, n_in)``, row-major.
        grads: as many of ``(batch, n_out)``: the gradient by the output.
        y: ``(batch, n_out)`` float64: the output for the first input.
        dx: ``(batch, n_in)`` float64: its gradient by the first input, for the first output gradient.
        dw: ``(nnz,)`` float64: its gradient by the connections, ascending.
    """

    conn: Connections
    inputs: list[Tensor]
    grads: list[Tensor]
    y: Tensor
    dx: Tensor
    dw: Tensor

    def save(self, path: Path) -> None:
        """Writes it where ``load`` finds it."""
        conn = {"shape": torch.tensor(self.conn.shape), "row": self.conn.row, "col": self.conn.col, "weight": self.conn.weight}
        many = {f"{name}.{n}": value for name in ("inputs", "grads") for n, value in enumerate(getattr(self, name))}
        answers = {name: getattr(self, name).contiguous() for name in ("y", "dx", "dw")}
        save_file({**conn, **many, **answers}, path)

    @classmethod
    def load(cls, path: Path, device: str) -> Problem:
        """What ``save`` wrote, on ``device``; the answers stay on the CPU."""
        found = load_file(path)
        n_out, n_in = found["shape"].tolist()
        conn = Connections("layer", (n_out, n_in), found["row"], found["col"], found["weight"])
        many = {name: [found[f"{name}.{n}"] for n in range(N_INPUTS)] for name in ("inputs", "grads")}
        return cls(conn, many["inputs"], many["grads"], found["y"], found["dx"], found["dw"]).on(device)

    def on(self, device: str) -> Problem:
        """The same with connections, inputs and gradients on ``device``."""
        parts = (part.to(device) for part in (self.conn.row, self.conn.col, self.conn.weight))
        conn = Connections("layer", self.conn.shape, *parts)
        return replace(self, conn=conn, inputs=[x.to(device) for x in self.inputs], grads=[g.to(device) for g in self.grads])


def make(shape: Shape, batch: int) -> Problem:
    """The problem of a shape: the same numbers in every process and on every machine."""
    conn = connections(shape)
    rng = Rng(0, "ops", str(shape), batch)

    def draw(n: int) -> list[Tensor]:
        return [rng.normal(batch * n).float().view(batch, n) for _ in range(N_INPUTS)]

    inputs, grads = draw(shape.n_in), draw(shape.n_out)
    return Problem(conn, inputs, grads, *reference(conn, inputs[0], grads[0]))


def connections(shape: Shape) -> Connections:
    """Fixed fan-in, every choice of columns equally likely, with normal weights."""
    rng = Rng(0, "ops", str(shape))
    counts, sizes = torch.full((shape.n_out,), shape.fan_in), torch.full((shape.n_out,), shape.n_in)
    flat = rng.distinct_in_groups(counts, sizes)  # (nnz,) int64
    weight = rng.normal(shape.nnz).float() * shape.fan_in**-0.5
    return Connections("layer", (shape.n_out, shape.n_in), flat // shape.n_in, flat % shape.n_in, weight)


def reference(conn: Connections, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, gradient by the input and gradient by the connections in float64."""
    row, col, weight = conn.row.numpy(), conn.col.numpy(), conn.weight.double().numpy()
    matrix = csr_array((weight, (row, col)), shape=conn.shape)
    wide = np.ascontiguousarray(x.double().numpy().T)  # (n_in, batch)
    upper = np.ascontiguousarray(grad.double().numpy().T)  # (n_out, batch)
    dw = np.empty(row.size)
    for first in range(0, row.size, _CHUNK):
        here = slice(first, first + _CHUNK)
        dw[here] = np.einsum("ij,ij->i", upper[row[here]], wide[col[here]])
    y, dx = matrix @ wide, matrix.T @ upper
    return torch.from_numpy(y.T), torch.from_numpy(dx.T), torch.from_numpy(dw)
