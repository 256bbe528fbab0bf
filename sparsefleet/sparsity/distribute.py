"""How a network's budget of connections is spread over its layers, with an exact total."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from sparsefleet.errors import PluginError, UserError


def total_nnz(n_sites: int, density: float) -> int:
    """``density * n_sites`` rounded half up: the one rounding of the product."""
    return math.floor(density * n_sites + 0.5)


def distribute(
    shapes: Mapping[str, Sequence[int]],
    density: float,
    kind: Literal["uniform", "er", "erk"],
) -> dict[str, int]:
    """nnz of every layer; they sum to ``total_nnz`` of all sites, and every layer has at least one.

    ``uniform`` gives each layer the same density. ``er`` (arXiv 1707.04780, Eq. 1) makes density proportional to
    ``(n_in + n_out) / (n_in * n_out)``, of a convolution to that of its channels; ``erk`` (arXiv 1911.11134, section 3, which has both) to the
    sum of all dimensions, kernel included, over their product. A layer that would exceed 1 is dense and the rest is solved again.

    Args:
        shapes: weight shapes, ``(out, in)`` or ``(out, in, kh, kw)``.
        density: kept share of all sites together, in (0, 1].

    Raises:
        UserError: another density, or fewer connections than layers.
    """
    if not isinstance(density, int | float) or not 0 < density <= 1:
        raise UserError(f"density must be in (0, 1], got {density!r}")
    sites = {name: math.prod(shape) for name, shape in shapes.items()}
    total = total_nnz(sum(sites.values()), density)
    if total < len(sites):
        raise UserError(f"density {density} leaves {total} connections for {len(sites)} layers", fix="raise the density")
    raw = {name: 1.0 if kind == "uniform" else _raw(shape, kind) for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        free = [name for name in shapes if name not in dense]
        budget = total - sum(sites[name] for name in dense)
        scale = budget / sum(raw[name] * sites[name] for name in free) if free else 0.0
        over = {name for name in free if raw[name] * scale > 1.0 + 1e-12}
        if not over:
            break
        dense |= over  # all of them: a tie must not depend on the order of the layers
    wanted = {name: float(sites[name]) if name in dense else raw[name] * scale * sites[name] for name in shapes}
    return _round_to_total(wanted, sites, total)


def _raw(shape: Sequence[int], kind: str) -> float:
    dims = list(shape) if kind == "erk" else shape[:2]
    return sum(dims) / math.prod(dims)


def scaled(asked: Mapping[str, int], shapes: Mapping[str, Sequence[int]], factor: float) -> dict[str, int]:
    """Every layer's connections times ``factor``, rounded, at most all of its sites."""
    return {name: min(math.prod(shapes[name]), round(factor * nnz)) for name, nnz in asked.items()}


def _round_to_total(wanted: Mapping[str, float], limit: Mapping[str, int], total: int) -> dict[str, int]:
    """Largest remainders, ties by position; at least 1 and at most ``limit`` each."""
    count = {name: min(limit[name], max(1, math.floor(value + 1e-9))) for name, value in wanted.items()}
    by_remainder = sorted(wanted, key=lambda name: count[name] - wanted[name])
    while sum(count.values()) != total:
        step = 1 if sum(count.values()) < total else -1
        order = by_remainder if step > 0 else list(reversed(by_remainder))
        for name in order:
            if sum(count.values()) != total and 1 <= count[name] + step <= limit[name]:
                count[name] += step
    return count


def apportion(total: int, weights: Sequence[float], room: Sequence[int]) -> list[int]:
    """How many of ``total`` each place gets: in proportion to its weight, at most its room, and exactly ``total`` in all.

    What a full place cannot take goes to the others in proportion to their weights, to all of them equally if those are zero. Largest
    remainders, ties by position.

    Args:
        weights: what is not a positive number counts as zero.
        room: of each place.

    Raises:
        PluginError: there is less room than ``total``.
    """
    if not 0 <= total <= sum(room):
        raise PluginError(f"cannot give {total} to places with room for {sum(room)}")
    weights = [weight if 0 < weight < math.inf else 0.0 for weight in weights]
    given, open_places = [0] * len(room), [i for i in range(len(room)) if room[i]]
    while open_places:
        left, whole = total - sum(given), math.fsum(weights[i] for i in open_places)
        share = {i: left * (weights[i] / whole if whole else 1 / len(open_places)) for i in open_places}
        full = [i for i in open_places if share[i] >= room[i]]
        if not full:
            break
        for i in full:
            given[i] = room[i]
        open_places = [i for i in open_places if i not in full]
    for i in open_places:
        given[i] = math.floor(share[i])
    by_remainder = sorted(open_places, key=lambda i: given[i] - share[i])
    for i in by_remainder[: total - sum(given)]:
        given[i] += 1
    return given
