"""With how many connections a training starts: what was asked, unless the rewirer begins with others. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sparsefleet.errors import PluginError
from sparsefleet.sparsity.distribute import scaled

if TYPE_CHECKING:
    from sparsefleet.plugin import Rewirer


def first_nnz(rewirer: Rewirer, density: float, asked: Mapping[str, int], shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Connections of every layer before the first step: each layer's ``asked`` times what the rewirer starts with, at most all of its sites.

    Raises:
        UserError: the rewirer cannot have the density.
        PluginError: it starts with another one and does not declare ``varies_nnz``, so that it would keep that to the end; or it names none.
    """
    return scaled(asked, shapes, first_density(rewirer, density) / density)


def first_density(rewirer: Rewirer, density: float) -> float:
    """``rewirer.first_density(density)``, checked; errors as for ``first_nnz``."""
    first = rewirer.first_density(density)
    if not isinstance(first, (int, float)) or not math.isfinite(first) or first <= 0:
        raise PluginError(f"rewirer {rewirer.name!r} starts with density {first!r} where {density:g} is asked")
    if first != density and not rewirer.varies_nnz:
        raise PluginError(
            f"rewirer {rewirer.name!r} starts with density {first:g} where {density:g} is asked, and would keep it to the end",
            cause="it overrides first_density and does not declare varies_nnz",
            fix="set varies_nnz = True on the class: n_target is then what was asked, and update leads there",
        )
    return float(first)
