"""Checks for rewirers on layers that are not plain: denser at the start than asked, with a constant fan-in, or nearly full."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparsefleet.connections import Connections
from sparsefleet.errors import PluginError, UserError
from sparsefleet.plugin import Progress, Rewirer
from sparsefleet.rng import Rng
from sparsefleet.sparsity.starting import first_density
from sparsefleet.testing.expect import expect, fail
from sparsefleet.testing.samples import layer_of

_SHAPE = (12, 20)
_MOMENTS = tuple(Progress(step, 1000, 50) for step in (1, 50, 500, 749, 1000))
_DENSITIES = (0.01, 0.1, 0.3, 0.5, 0.9)


@dataclass
class _Nearly(Connections):
    """A layer that remembers what ``best_absent`` gave where it was asked for more than there is."""

    cut: list[Tensor] = field(default_factory=list)

    def best_absent(self, k: int, values: Tensor | None = None) -> Tensor:
        sites = super().best_absent(k, values)
        if k > sites.shape[1]:
            self.cut.append(sites)
        return sites


def declares_another_start(plugin: Rewirer) -> None:
    """``first_density`` names what a training starts with; where that is not what was asked, ``varies_nnz`` lets the updates lead there."""
    for density in _DENSITIES:
        try:
            first_density(plugin, density)
        except UserError:  # it cannot have this one, and a plan skips it with the reason
            continue
        except PluginError as error:
            fail(
                "a first density in (0, 1], and varies_nnz = True where it is not the asked one", error.what, error.fix or "return a number"
            )


def fits_a_constant_fan_in(plugin: Rewirer) -> None:
    """Where ``conn.constant_fan_in``, an update leaves every output unit with equally many connections; ``fits_fan_in = False`` opts out."""
    if not plugin.fits_fan_in or plugin.needs_dense or plugin.redistributes:  # none of these runs on such a layer
        return
    if plugin.ablates_by:  # it runs there with this parameter at 0 only
        plugin = plugin.model_copy(update={plugin.ablates_by: 0})
    mend = (
        "leave a multiple of conn.n_out, keep at most the new fan-in of each unit with keep_best_per_row, and grow"
        " conn.select(keep).best_absent(k) or .random_absent(k), which fill units up; or set fits_fan_in = False on the class"
    )
    for fan_in in (5, 1, _SHAPE[1] - 1):
        for progress in _MOMENTS:
            conn = _with_state(plugin, layer_of(_SHAPE, fan_in * _SHAPE[0], constant_fan_in=True))
            conn.dense = None
            for n_target in {conn.nnz, _SHAPE[0] * max(1, fan_in // 2)} if plugin.varies_nnz else {conn.nnz}:
                try:
                    keep, new = plugin.update(conn, progress, Rng("update", progress.step), n_target)
                except Exception as error:  # noqa: BLE001  whatever it raises is the finding
                    fail(f"an update of a layer with fan-in {fan_in} at step {progress.step}", repr(error), mend)
                per_row = torch.bincount(torch.cat([conn.row[keep], new[0]]), minlength=_SHAPE[0])
                least, most = int(per_row.min()), int(per_row.max())
                expect(least == most, "one fan-in for all output units after the update", f"{least} to {most}", mend)


def grows_where_it_has_dropped(plugin: Rewirer) -> None:
    """In a nearly full layer the sites that an update has dropped count as absent: what grows is chosen on ``conn.select(keep)``."""
    for progress in _MOMENTS:
        conn = _with_state(plugin, _nearly_full(plugin))
        new = plugin.update(conn, progress, Rng("update", progress.step), conn.nnz).new
        cut = any(sites.shape == new.shape and torch.equal(sites, new) for sites in conn.cut)
        mend = "grow with conn.select(keep).best_absent(k); on conn itself best_absent gives no more than are absent"
        expect(not cut, "as many grown sites as best_absent was asked for", f"only the {new.shape[1]} that were absent before", mend)


def _nearly_full(plugin: Rewirer) -> _Nearly:
    conn = layer_of(_SHAPE, _SHAPE[0] * _SHAPE[1] - 5)
    parts: dict[str, Any] = {name: value for name, value in vars(conn).items() if name != "dense" or plugin.needs_dense}
    return _Nearly(**parts)


def _with_state(plugin: Rewirer, conn: Any) -> Any:
    conn.state = dict(plugin.initial_state(conn))
    plugin.on_step(conn, 0.1, Rng("first-step"))
    return conn


CHECKS = (declares_another_start, fits_a_constant_fan_in, grows_where_it_has_dropped)
