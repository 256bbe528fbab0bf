"""Small layers with known contents, and streams that tell whether they were used."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from sparsefleet.connections import Connections, DenseValues
from sparsefleet.rng import Rng

WIDE = 1_000_000
FAR = (100_003, 99_989)
FAR_BYTES = 2 << 30
"""More than any method needs there; a tensor of all sites is 10 GB at least."""
"""Output and input units whose sites, in a diagonal or a column as well, are numbers that float32 cannot hold."""
MANY = 2**24 + 1
SMALL_DENSE = 4_000  # a dense tensor of this width squared is noticed and does no harm


class WatchedRng(Rng):
    """A stream that remembers whether anything was drawn from it."""

    used = False

    def at(self, positions: Tensor) -> Tensor:
        self.used = True
        return super().at(positions)

    def _take(self, n: int, device: torch.device | str | None) -> Tensor:
        self.used = True
        return super()._take(n, device)

    def spawn(self, *parts: object) -> Rng:
        self.used = True
        return super().spawn(*parts)


def layer_of(
    shape: tuple[int, int],
    nnz: int,
    *,
    seed: int = 0,
    weight: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
    grad: Tensor | None = None,
    constant_fan_in: bool = False,
) -> Connections:
    """Random connections with normal weights and gradients, the same at every call.

    Layers of up to a million sites answer ``best_absent`` from a gradient at every site; wider ones grow at random in its place.

    Args:
        shape: ``(n_out, n_in)``.
        nnz: connections, at random sites; with ``constant_fan_in`` a multiple of ``n_out``.
        weight: ``(nnz,)``, by ascending site.
        grad: ``(nnz,)`` likewise, or the gradient at every site, ``(n_out, n_in)``, that ``best_absent`` ranks absent ones by.
        constant_fan_in: every output unit has equally many connections, as on the layer ``fixed-fan-in``.
    """
    n_out, n_in = shape
    flat = _fan_in_sites(shape, nnz, seed) if constant_fan_in else Rng(seed, "sites").distinct(nnz, n_out * n_in)
    values = Rng(seed, "weight").normal(nnz).to(dtype) if weight is None else weight.to(dtype)
    everywhere = None if grad is None or grad.dim() < 2 else grad.to(dtype)
    grad = Rng(seed, "grad").normal(nnz) if grad is None else grad if everywhere is None else everywhere.reshape(-1)[flat]
    grad = grad.to(dtype)
    conn = Connections(
        "layer",
        shape,
        flat // n_in,
        flat % n_in,
        values,
        grad=grad,
        rng=Rng(seed, "draws"),
        constant_fan_in=constant_fan_in,
    )
    if n_out * n_in <= 1_000_000:
        gradient = Rng(seed, "dense-grad").normal(n_out * n_in).to(dtype).view(n_out, n_in) if everywhere is None else everywhere.clone()
        gradient.view(-1)[flat] = grad
        stored = torch.zeros(shape, dtype=dtype)
        stored.view(-1)[flat] = conn.weight
        conn.dense = DenseValues(stored, gradient, {})
        conn.best_absent_by_gradient = lambda present, k: _with_sites(conn, present).best_absent(k, gradient)
        conn.best_absent_per_row_by_gradient = lambda present, counts: _with_sites(conn, present).best_absent_per_row(counts, gradient)
    else:
        conn.best_absent_by_gradient = lambda present, k: _with_sites(conn, present).random_absent(k, Rng(seed, "stand-in"))
        conn.best_absent_per_row_by_gradient = lambda present, counts: _with_sites(conn, present).random_absent_per_row(
            counts, Rng(seed, "stand-in")
        )
    return conn


def _fan_in_sites(shape: tuple[int, int], nnz: int, seed: int) -> Tensor:
    none = torch.empty(0, dtype=torch.int64)
    row, col = Connections("layer", shape, none, none, none.double(), constant_fan_in=True).random_absent(nnz, Rng(seed, "sites"))
    flat: Tensor = row * shape[1] + col
    return flat


def _with_sites(conn: Connections, flat: Tensor) -> Connections:
    return Connections(conn.layer, conn.shape, flat // conn.n_in, flat % conn.n_in, conn.weight.new_empty(0))


def frozen_copy(conn: Connections) -> dict[str, Tensor]:
    """Copies of every tensor of ``conn``, to compare with later."""
    held = {"row": conn.row, "col": conn.col, "weight": conn.weight, **{f"state[{key!r}]": value for key, value in conn.state.items()}}
    held |= {f"memory[{key!r}]": value for key, value in conn.memory.items()}
    if conn.grad is not None:
        held["grad"] = conn.grad
    if conn.dense is not None:
        held["dense.weight"] = conn.dense.weight
        if conn.dense.grad is not None:
            held["dense.grad"] = conn.dense.grad
        held |= {f"dense.state[{key!r}]": value for key, value in conn.dense.state.items()}
    return {name: value.clone() for name, value in held.items()}


def changed(before: dict[str, Tensor], conn: Connections) -> list[str]:
    """Names of tensors of ``conn`` that differ from ``before``, or were not there."""
    after = frozen_copy(conn)
    return [name for name, value in before.items() if name not in after or not torch.equal(value, after[name])] + [*after.keys() - before]


def disturb_global_seeds(seed: int) -> None:
    """Moves every global generator, so that whoever draws from one gives itself away."""
    random.seed(seed)
    torch.manual_seed(seed)
    try:
        import numpy as np
    except ImportError:
        return
    np.random.seed(seed)


def renumbered(conn: Connections, units: Literal["output", "input"]) -> tuple[Connections, Tensor]:
    """The same layer with these units in reverse order, and where each old connection went, ``(nnz,)``."""
    row = conn.n_out - 1 - conn.row if units == "output" else conn.row
    col = conn.n_in - 1 - conn.col if units == "input" else conn.col
    order = torch.argsort(row * conn.n_in + col)
    place = torch.empty_like(order)
    place[order] = torch.arange(conn.nnz)
    out = replace(
        conn,
        row=row[order],
        col=col[order],
        weight=conn.weight[order],
        grad=None if conn.grad is None else conn.grad[order],
        state={key: value[order] for key, value in conn.state.items()},
        dense=None,
        best_absent_by_gradient=None,
        best_absent_per_row_by_gradient=None,
    )
    return out, place


def many_connections() -> Connections:
    """2**24 + 1 connections, more than float32 can count and than ``torch.quantile`` takes, of different float32 weights, made without drawing.

    Magnitudes ascend through the layer, signs alternate, and every third site is connected.
    """
    shape, n = (6_145, 8_192), MANY
    flat = torch.arange(n).mul_(3)
    row = torch.div(flat, shape[1], rounding_mode="floor")
    weight = (torch.arange(n, dtype=torch.int32) + 0x3F000000).view(torch.float32)  # from 0.5 on, each the next float
    weight[::2].neg_()
    conn = Connections("layer", shape, row, flat.sub_(row * shape[1]), weight, grad=weight.flip(0), rng=Rng("many"))

    def absent(present: Tensor, k: int) -> Tensor:
        return _with_sites(conn, present).random_absent(k, Rng("stand-in"))

    def absent_per_row(present: Tensor, counts: Tensor) -> Tensor:
        return _with_sites(conn, present).random_absent_per_row(counts, Rng("stand-in"))

    conn.best_absent_by_gradient, conn.best_absent_per_row_by_gradient = absent, absent_per_row
    return conn


def rounded_to_half(values: Tensor) -> bool:
    """True if all values, which are not all whole numbers, are ones that float16 can hold, or all ones that bfloat16 can hold.

    Args:
        values: ``(n,)`` floating.
    """
    if values.numel() < 16 or bool((values == values.round()).all()):
        return False
    return any(bool((values.to(half).to(values.dtype) == values).all()) for half in (torch.float16, torch.bfloat16))


def rounded_to_float32(flat: Tensor) -> bool:
    """True if all of many far sites are whole numbers that float32 can hold, as only those are that went through it.

    Args:
        flat: ``(n,)`` int64 flat sites of a layer of shape ``FAR``.
    """
    far = flat[flat > 2**24]
    return far.numel() >= 16 and bool((far.float().long() == far).all())
