"""Small layers with known contents, and streams that tell whether they were used."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from sparsefleet.connections import Connections, DenseValues
from sparsefleet.rng import Rng

WIDE = 1_000_000
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


def layer_of(
    shape: tuple[int, int],
    nnz: int,
    *,
    seed: int = 0,
    weight: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Connections:
    """Random connections with normal weights and gradients, the same at every call.

    Layers of up to a million sites answer ``best_absent`` from a gradient at every site; wider ones grow at random in its place.
    """
    n_out, n_in = shape
    flat = Rng(seed, "sites").distinct(nnz, n_out * n_in)
    values = Rng(seed, "weight").normal(nnz).to(dtype) if weight is None else weight.to(dtype)
    grad = Rng(seed, "grad").normal(nnz).to(dtype)
    conn = Connections(
        "layer",
        shape,
        flat // n_in,
        flat % n_in,
        values,
        grad=grad,
        rng=Rng(seed, "draws"),
    )
    if n_out * n_in <= 1_000_000:
        gradient = Rng(seed, "dense-grad").normal(n_out * n_in).to(dtype).view(n_out, n_in)
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
    return {name: value.clone() for name, value in held.items()}


def changed(before: dict[str, Tensor], conn: Connections) -> list[str]:
    """Names of tensors of ``conn`` that differ from ``before``."""
    after = frozen_copy(conn)
    return [name for name, value in before.items() if name not in after or not torch.equal(value, after[name])]


def disturb_global_seeds(seed: int) -> None:
    """Moves every global generator, so that whoever draws from one gives itself away."""
    random.seed(seed)
    torch.manual_seed(seed)
    try:
        import numpy as np
    except ImportError:
        return
    np.random.seed(seed)


def permuted_rows(conn: Connections) -> tuple[Connections, Tensor]:
    """The same layer with its output units in reverse order, and where each old connection went, ``(nnz,)``."""
    row = conn.n_out - 1 - conn.row
    order = torch.argsort(row * conn.n_in + conn.col)
    place = torch.empty_like(order)
    place[order] = torch.arange(conn.nnz)
    out = Connections(
        conn.layer,
        conn.shape,
        row[order],
        conn.col[order],
        conn.weight[order],
        grad=None if conn.grad is None else conn.grad[order],
        state={key: value[order] for key, value in conn.state.items()},
        rng=conn.rng,
    )
    return out, place
