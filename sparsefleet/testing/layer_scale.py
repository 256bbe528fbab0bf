"""Checks of what a layer holds and allocates, and of units so far out that float32 cannot number them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sparsefleet.connections import Connections, sites_of_tiles
from sparsefleet.nn.module import SparseModule
from sparsefleet.nn.projection import fitted_nnz
from sparsefleet.plugin import Layer
from sparsefleet.rng import Rng
from sparsefleet.testing.allocation import peak_bytes
from sparsefleet.testing.expect import expect, heavy
from sparsefleet.testing.layer_case import template_of
from sparsefleet.testing.samples import SMALL_DENSE, WIDE, layer_of


def allocates_by_connections(plugin: Layer) -> None:
    """A training step of a 1,000,000 x 1,000,000 layer with few connections: 16 MiB, 48 bytes per connection, 8 per activation of the batch.

    1,000 connections, or a fan-in of 1 where it must be constant.
    """
    if plugin.stores_dense:
        return
    batch = 2
    for width, limit in ((SMALL_DENSE, SMALL_DENSE * SMALL_DENSE), (WIDE, 16 * 2**20 + 8 * 2 * WIDE * batch)):
        conn = _wide(plugin, width)
        limit += 48 * conn.nnz if width == WIDE else 0
        x = torch.ones(batch, width, requires_grad=True)
        up = torch.ones(batch, width)
        module = plugin.build(template_of((width, width)), conn, torch.zeros(width))

        def step(module: nn.Module = module, x: Tensor = x, up: Tensor = up) -> None:
            module(x).backward(up)

        used = peak_bytes(step)
        expect(
            used < limit,
            f"less than {limit / 2**20:.0f} MiB for a step at {width:,} x {width:,} and batch {batch}",
            f"{used / 2**20:.1f} MiB",
            "torch.sparse.mm's own backward builds the dense gradient: write an autograd.Function (sparsefleet.ops.csr)",
        )


def _wide(plugin: Layer, width: int) -> Connections:
    if plugin.topology == "free":
        return layer_of((width, width), 1000, dtype=torch.float32)
    none = torch.empty(0, dtype=torch.int64)
    empty = Connections("layer", (width, width), none, none, none, constant_fan_in=plugin.topology == "constant-fan-in", tile=plugin.tile)
    row, col = empty.random_absent(fitted_nnz(1000, (width, width), plugin.topology, plugin.tile), Rng("wide"))
    return replace(empty, row=row, col=col, weight=torch.ones(row.numel()))


def holds_what_it_says(plugin: Layer) -> None:
    """A layer without ``stores_dense`` keeps its connections, their ``index_bytes``, and a few numbers per unit; wherever it keeps them."""
    if plugin.stores_dense or plugin.topology == "all":
        return
    conn = _wide(plugin, SMALL_DENSE)
    module = plugin.build(template_of(conn.shape), conn, torch.zeros(conn.n_out))
    x = torch.ones(2, conn.n_in, requires_grad=True)
    module(x).sum().backward()
    module.zero_grad()
    limit = 2**16 + (plugin.index_bytes + 16) * conn.nnz + 64 * (conn.n_out + conn.n_in)
    held = sum(_sizes(module, set()))
    expect(
        held < limit,
        f"at most {limit / 1024:.0f} KiB for {conn.nnz:,} connections of {SMALL_DENSE:,} x {SMALL_DENSE:,} at index_bytes = {plugin.index_bytes:g}",
        f"{held / 1024:,.0f} KiB in parameters, buffers and attributes",
        "keep (nnz,) tensors only; a layer that keeps a mask or a dense weight says stores_dense = True",
    )


def _sizes(held: Any, seen: set[int]) -> Iterator[int]:
    """Bytes of every tensor and array within ``held``, each storage once."""
    if isinstance(held, Tensor) and held.layout != torch.strided:
        parts = {torch.sparse_csr: ("crow_indices", "col_indices", "values"), torch.sparse_csc: ("ccol_indices", "row_indices", "values")}
        for name in parts.get(held.layout, ("_indices", "_values")):
            yield from _sizes(getattr(held, name)(), seen)
        return
    key = held.untyped_storage().data_ptr() if isinstance(held, Tensor) else id(held)
    if key in seen:
        return
    seen.add(key)
    if isinstance(held, Tensor):
        yield held.untyped_storage().nbytes()
    elif isinstance(getattr(held, "nbytes", None), int):
        yield held.nbytes
    elif isinstance(held, nn.Module):
        yield from _sizes(vars(held), seen)
    elif isinstance(held, dict):
        for value in held.values():
            yield from _sizes(value, seen)
    elif isinstance(held, list | tuple | set):
        for value in held:
            yield from _sizes(value, seen)
    elif is_dataclass(held):
        for field in fields(held):
            yield from _sizes(getattr(held, field.name), seen)


@heavy
def computes_far_units_exactly(plugin: Layer) -> None:
    """Units beyond 2**24 are units like others: outputs, gradients and ``connections()`` are exact there."""
    if plugin.stores_dense or plugin.topology in ("all", "n:m") or plugin.chooses:
        return  # whom it chooses is checked by itself
    far = 2**24 + 16
    for shape in ((4, far), (far, 4))[: 1 if plugin.topology == "constant-fan-in" else 2]:
        conn = _far(plugin, shape)
        module = plugin.build(template_of(shape), conn, None)
        x = torch.ones(1, shape[1])
        x[0, -32:] = torch.arange(1.0, 33.0) if shape[1] == far else 1.0
        x.requires_grad_()
        y = module(x)
        y.backward(torch.ones_like(y))
        want_y = torch.zeros(shape[0]).index_add_(0, conn.row, conn.weight * x[0, conn.col].detach())
        want_x = torch.zeros(shape[1]).index_add_(0, conn.col, conn.weight)
        grad = x.grad if x.grad is not None else torch.zeros_like(x)
        mend = "keep row and column numbers in int32 or int64; float32 holds only every second number above 2**24"
        said = f"a layer of {shape[0]:,} x {shape[1]:,}"
        expect(torch.equal(y[0], want_y), f"exact outputs of {said}", f"{int((y[0] != want_y).sum())} others", mend)
        expect(torch.equal(grad[0], want_x), f"exact gradients by the input of {said}", f"{int((grad[0] != want_x).sum())} others", mend)
        if isinstance(module, SparseModule):
            expect(torch.equal(module.flat_sites(), conn.flat), f"the sites of {said}", "others", mend)


def _far(plugin: Layer, shape: tuple[int, int]) -> Connections:
    """Whole-numbered weights at the last units of the long side, as the layer's topology holds them; sums of them are exact in float32."""
    n_out, n_in = shape
    if plugin.topology == "block":
        wide, high = -(-n_in // plugin.tile), -(-n_out // plugin.tile)
        flat = sites_of_tiles(torch.tensor([wide * high - 1]), shape, plugin.tile)
    elif n_in > n_out:
        flat = (torch.arange(n_out)[:, None] * n_in + n_in - torch.arange(1, 12, 2).flip(0)).flatten()
    else:
        flat = ((n_out - torch.arange(1, 12, 2).flip(0))[:, None] * n_in + torch.arange(n_in)).flatten()
    weight = (torch.arange(flat.numel()) % 5 + 1).float()
    return Connections(
        "layer",
        shape,
        flat // n_in,
        flat % n_in,
        weight,
        constant_fan_in=plugin.topology == "constant-fan-in",
        tile=plugin.tile,
    )


CHECKS = (allocates_by_connections, holds_what_it_says, computes_far_units_exactly)
