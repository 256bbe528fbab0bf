"""AutoLinear: whichever storage measured fastest here for a layer's shape, density, batch, device and thread count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparsefleet.connections import Connections
from sparsefleet.errors import UserError
from sparsefleet.nn.csr import CsrLinear
from sparsefleet.nn.fixed_fan_in import FixedFanInLinear
from sparsefleet.nn.masked import MaskedModule
from sparsefleet.nn.module import SparseModule
from sparsefleet.nn.race import Choice, Setting, choose, dense_is_too_large


class AutoLinear:
    """Builds a ``FixedFanInLinear``, a ``CsrLinear`` or a ``MaskedLinear``: ``AutoLinear(784, 2000)`` *is* the layer that won.

    The first layer of its kind on a machine is built and timed as every candidate, about a second beyond the building; the choice is kept in the cache folder and told on standard error.

    Args:
        in_features, out_features, density, bias, seed, device, dtype, connections: as for ``SparseLinear``. Without ``connections`` a
            constant fan-in is drawn, which every storage can hold.
        batch_size: the batch that the layer is meant for.

    Raises:
        UserError: what ``SparseLinear`` raises, or a batch of nothing.
    """

    def __new__(  # type: ignore[misc]
        cls, in_features: int, out_features: int, density: float = 0.1, bias: bool = True, *, batch_size: int = 64, **options: Any
    ) -> SparseModule:
        drawn: CsrLinear | FixedFanInLinear
        if options.get("connections") is None:
            drawn = FixedFanInLinear(in_features, out_features, density, bias, **options)
        else:
            drawn = CsrLinear(in_features, out_features, density, bias, **options)
        chosen = cls.from_connections(drawn.connections(), drawn.bias, batch_size=batch_size)
        chosen.init_key = drawn.init_key
        return chosen

    @staticmethod
    def from_connections(conn: Connections, bias: Tensor | None, *, batch_size: int = 64) -> SparseModule:
        """The fastest layer that holds ``conn`` with its weights, and ``(n_out,)`` ``bias`` or none."""
        candidates: dict[str, Callable[[], SparseModule]] = {
            "fixed-fan-in": lambda: FixedFanInLinear.from_connections(conn, bias),
            "csr": lambda: CsrLinear.from_connections(conn, bias),
            "masked": lambda: _masked(conn, bias),
        }
        return candidates[choice_for(conn, batch_size, candidates).name]()


def _masked(conn: Connections, bias: Tensor | None) -> MaskedModule:
    with torch.device("meta"):
        template = nn.Linear(conn.n_in, conn.n_out, bias=bias is not None)
    return MaskedModule.from_connections(conn, bias, template=template)


def choice_for(conn: Connections, batch_size: int, candidates: dict[str, Callable[[], SparseModule]]) -> Choice:
    """The race for ``conn``, between those of ``candidates`` that can hold it."""
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    per_row = conn.per_row()
    constant = conn.nnz > 0 and bool((per_row == per_row[0]).all())
    setting = Setting(
        shape=conn.shape,
        density=float(f"{conn.density:.3g}"),
        batch_size=batch_size,
        dtype=str(conn.weight.dtype).removeprefix("torch."),
        device=str(conn.weight.device),
        threads=torch.get_num_threads(),
        constant_fan_in=constant,
    )
    left_out = {"fixed-fan-in": "" if constant else "the fan-in is not constant", "masked": dense_is_too_large(conn.shape)}
    left_out = {name: why for name, why in left_out.items() if why}
    return choose(setting, {name: make for name, make in candidates.items() if name not in left_out}, left_out)
