"""A layer after an update, for authors' own tests."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sparsefleet.connections import Connections, DenseValues, check_sites
from sparsefleet.errors import PluginError
from sparsefleet.plugin import Update


def apply(conn: Connections, update: Update, grown_weight: Tensor | None = None) -> Connections:
    """``conn`` after ``update``, as the core makes it: another object; ``conn`` stays as it is.

    Kept connections keep weight and state, grown ones start from zero in both, ``memory`` is taken over, and gradients by connection are gone
    until the next backward pass. ``dense`` holds the new weights at live sites and its old values elsewhere.

    Args:
        update: what ``Rewirer.update`` returned.
        grown_weight: ``(k,)`` first weights, in the order of ``update.new``, e.g. those of ``Rewirer.grown_weight``; default: zero.

    Raises:
        InvalidMask: new sites that lie outside the layer, or come twice.
        PluginError: new sites that are kept.
    """
    keep, new = update
    kept, k = conn.select(keep), new.shape[1]
    check_sites(new, conn.shape, layer=conn.layer)
    grown = new[0] * conn.n_in + new[1]
    n_twice = int(torch.isin(grown, kept.flat).sum())
    if n_twice:
        raise PluginError(f"layer {conn.layer!r}: {n_twice} of {k} grown connections are already there")
    first = conn.weight.new_zeros(k) if grown_weight is None else grown_weight.to(conn.weight.dtype)
    flat, order = torch.sort(torch.cat([kept.flat, grown]))
    weight = torch.cat([kept.weight, first])[order]
    return replace(
        conn,
        row=flat // conn.n_in,
        col=flat % conn.n_in,
        weight=weight,
        grad=None,
        state={name: torch.cat([value, value.new_zeros(k)])[order] for name, value in kept.state.items()},
        memory=dict(conn.memory),
        dense=None if conn.dense is None else _with_weights(conn.dense, flat, weight),
    )


def _with_weights(dense: DenseValues, flat: Tensor, weight: Tensor) -> DenseValues:
    stored = dense.weight.clone()
    stored.view(-1)[flat] = weight
    return replace(dense, weight=stored, state=dict(dense.state))
