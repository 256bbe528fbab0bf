"""What a layer can hold decides what is chosen: methods choose connections, and the choice is projected onto constant fan-in or whole tiles.

Pruning keeps the best of every output unit, or the tiles of highest mean score. Rewiring drops what the method drops, in whole tiles where
the layer has them, and what it grows fills every output unit up again (``Connections.constant_fan_in``) or is whole tiles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsefleet.connections import Connections, sites_of_tiles
from sparsefleet.errors import PluginError, UserError
from sparsefleet.nn.module import SparseModule
from sparsefleet.plugin import Connectivity, Progress, Rewirer, Update
from sparsefleet.rng import Rng
from sparsefleet.sparsity.fitted import fitted_nnz as fitted_nnz
from sparsefleet.sparsity.pattern import keep_by_pattern
from sparsefleet.sparsity.select import keep_best_per_row
from sparsefleet.sparsity.vocabulary import Block, Pattern, Unstructured


def fitted_pattern(module: SparseModule, pattern: Pattern) -> tuple[Pattern, bool]:
    """The pattern in which a module is pruned, and whether every output unit keeps equally many."""
    if module.topology == "block" and isinstance(pattern, Unstructured):
        return Block(rows=module.tile, cols=module.tile), False
    return pattern, module.topology == "constant-fan-in" and isinstance(pattern, Unstructured)


def update_of(rewirer: Rewirer, conn: Connections, progress: Progress, n_target: int) -> Update:
    """One update of a layer, in whole tiles where it has them.

    Raises:
        PluginError: the layer has tiles, and the method chooses its connections one by one.
    """
    if conn.tile == 1:
        return rewirer.update(conn, progress, conn.rng, n_target)
    if not rewirer.fits_tiles or type(rewirer).update is not Rewirer.update:
        raise PluginError(f"rewirer {rewirer.name!r} chooses connections one by one; layer {conn.layer!r} holds whole tiles")
    n_keep = conn.nnz - min(rewirer.drop_count(conn, progress), conn.nnz)
    keep = keep_by_pattern(rewirer.drop_score(conn), conn, n_keep, Block(rows=conn.tile, cols=conn.tile))
    kept = conn.select(keep)
    return Update(keep, rewirer.grow(kept, max(0, n_target - kept.nnz), conn.rng))


def fitted_draw(connectivity: Connectivity, name: str, shape: tuple[int, int], nnz: int, rng: Rng, onto: tuple[str, int]) -> Tensor:
    """``(2, n)`` sites that the connectivity draws, as the topology can hold them.

    For tiles the connectivity draws on the grid of tiles; one that draws tiles itself draws sites, and the tiles they lie in are taken. For a constant fan-in, units with too many connections keep random ones and units
    with too few get random ones; sites that a user gave stay as they are.

    Args:
        nnz: as ``fitted_nnz`` gives it.
        onto: the topology, and units per side of its tiles.
    """
    topology, tile = onto
    if topology == "block" and connectivity.topology != "block" and not connectivity.reads_files:
        wide = -(-shape[1] // tile)
        row, col = connectivity.draw_for(name, (-(-shape[0] // tile), wide), nnz // tile**2, rng)
        flat = sites_of_tiles(torch.sort(row * wide + col).values, shape, tile)
        return torch.stack([flat // shape[1], flat % shape[1]])
    sites = connectivity.draw_for(name, shape, nnz, rng)
    if topology == "block" and not connectivity.reads_files:
        wide = -(-shape[1] // tile)
        flat = sites_of_tiles(torch.unique(sites[0] // tile * wide + sites[1] // tile), shape, tile)
        return torch.stack([flat // shape[1], flat % shape[1]])
    if topology != "constant-fan-in" or connectivity.topology == topology or connectivity.reads_files:
        return sites
    flat = torch.sort(sites[0] * shape[1] + sites[1]).values
    conn = Connections(name, shape, flat // shape[1], flat % shape[1], flat.new_empty(0), constant_fan_in=True)
    fan_in = nnz // shape[0]
    keep = keep_best_per_row(rng.spawn("surplus").at(flat), conn.row, torch.full((shape[0],), fan_in, device=flat.device))
    kept = Connections(name, shape, conn.row[keep], conn.col[keep], flat.new_empty(0), constant_fan_in=True)
    return torch.cat([torch.stack([kept.row, kept.col]), kept.random_absent(nnz - kept.nnz, rng.spawn("lacking"))], 1)


def refuse_misfit(by: str, name: str, flat: Tensor, shape: tuple[int, int], onto: tuple[str, int]) -> None:
    """Refuses given sites that the topology cannot hold as they are.

    Args:
        by: who gives them, and ``name`` to which layer: for the message.
        flat: ``(nnz,)`` ascending.
        onto: the topology, and units per side of its tiles.

    Raises:
        UserError: they have no constant fan-in, or are not whole tiles.
    """
    (topology, tile), row = onto, flat // shape[1]
    if topology == "constant-fan-in":
        least, most = (int(count) for count in torch.aminmax(torch.bincount(row, minlength=shape[0])))
        if least != most:
            raise UserError(f"{by} gives {name} a fan-in of {least} to {most}, and the layer holds a constant one", fix="layer: csr")
    elif topology == "block":
        tiles = torch.unique(row // tile * -(-shape[1] // tile) + flat % shape[1] // tile)
        if sites_of_tiles(tiles, shape, tile).numel() != flat.numel():
            raise UserError(
                f"{by} gives {name} {flat.numel():,} connections that lie in {tiles.numel():,} blocks of {tile} x {tile}"
                " without filling them, and the layer holds whole blocks",
                fix="layer: csr",
            )
