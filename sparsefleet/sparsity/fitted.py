"""What a layer's storage can hold of a number of connections: a whole fan-in, or whole tiles. Imports no torch."""

from __future__ import annotations


def fitted_nnz(nnz: int, shape: tuple[int, int], topology: str, tile: int = 1) -> int:
    """The count nearest to ``nnz`` that the topology can hold: a whole fan-in or whole tiles, at least one of them.

    With ragged edges the tiles drawn may hold somewhat fewer.
    """
    if topology == "constant-fan-in":
        return shape[0] * min(shape[1], max(1, round(nnz / shape[0])))
    if topology == "block":
        return min(shape[0] * shape[1], _tiles(nnz, tile) * tile**2)
    return nnz


def expected_nnz(nnz: int, shape: tuple[int, int], topology: str, tile: int = 1) -> float:
    """How many connections that is on average over random tiles, those at ragged edges counted with their size."""
    fitted = fitted_nnz(nnz, shape, topology, tile)
    if topology != "block" or fitted == shape[0] * shape[1]:
        return fitted
    n_tiles = -(-shape[0] // tile) * -(-shape[1] // tile)
    return shape[0] * shape[1] * min(1.0, _tiles(nnz, tile) / n_tiles)


def _tiles(nnz: int, tile: int) -> int:
    return max(1, round(nnz / tile**2))
