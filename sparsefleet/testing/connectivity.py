"""Checks for connectivities."""

from __future__ import annotations

import torch

from sparsefleet.connections import check_sites
from sparsefleet.errors import InvalidMask
from sparsefleet.plugin import Connectivity
from sparsefleet.rng import Rng
from sparsefleet.testing.allocation import peak_bytes
from sparsefleet.testing.expect import expect, fail
from sparsefleet.testing.samples import SMALL_DENSE, WIDE, disturb_global_seeds

_SHAPE = (12, 20)


def draws_exactly(plugin: Connectivity) -> None:
    """Exactly nnz different sites inside the layer, from none to all; as many as are given, where they are."""
    for asked in (0, 1, 7, 60, 239, 240):
        nnz = plugin.nnz_of("layer", _SHAPE, asked)
        sites = plugin.draw_for("layer", _SHAPE, nnz, Rng("draw", nnz))
        try:
            flat = check_sites(sites, _SHAPE, layer="layer")
        except InvalidMask as error:
            fail(f"{nnz} different sites inside 12 x 20", error, "draw distinct flat positions: rng.distinct(nnz, n_out * n_in)")
        expect(flat.numel() == nnz, f"exactly {nnz} sites", flat.numel(), "never draw each site with a probability: the count would drift")


def is_deterministic(plugin: Connectivity) -> None:
    """The same stream gives the same topology, whatever the global generators do."""
    drawn = []
    for seed in (1, 2):
        disturb_global_seeds(seed)
        drawn.append(plugin.draw_for("layer", _SHAPE, plugin.nnz_of("layer", _SHAPE, 60), Rng("draw")))
    expect(torch.equal(*drawn), "equal topologies from equal streams", "they differ", "draw from the rng argument")


def allocates_by_connections(plugin: Connectivity) -> None:
    """1,000 sites of 1,000,000 x 1,000,000 cost kilobytes."""
    for width, limit in ((SMALL_DENSE, SMALL_DENSE * SMALL_DENSE), (WIDE, 16 * 2**20 + 8 * 2 * WIDE)):
        shape = (width, width)
        nnz = plugin.nnz_of("layer", shape, 1000)
        used = peak_bytes(lambda shape=shape, nnz=nnz: plugin.draw_for("layer", shape, nnz, Rng("wide")))  # type: ignore[misc]
        expect(used < limit, f"less than {limit / 2**20:.0f} MiB at {width:,} x {width:,}", f"{used / 2**20:.1f} MiB", "use rng.distinct")


CHECKS = (draws_exactly, is_deterministic, allocates_by_connections)
