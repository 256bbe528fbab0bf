"""Checks for pruners that choose among all sites, so that connections may return: ``revives``, ``score_sites``."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsefleet.connections import Connections
from sparsefleet.plugin import Pruner
from sparsefleet.rng import Rng
from sparsefleet.testing.expect import expect
from sparsefleet.testing.samples import changed, disturb_global_seeds, frozen_copy, layer_of

_SHAPE, _NNZ = (12, 20), 60


def _trained(plugin: Pruner, nnz: int = _NNZ) -> Connections:
    """A layer after three steps of a training."""
    conn = layer_of(_SHAPE, nnz)
    for step in range(3):
        plugin.before_step(conn)
        plugin.on_step(conn, 0.1, Rng("on-step", step))
    return conn


def says_that_it_needs_dense_values(plugin: Pruner) -> None:
    """Who scores absent sites needs a layer that stores values there."""
    expect(plugin.needs_dense, "needs_dense = True beside revives = True", plugin.needs_dense, "set needs_dense = True on the class")


def scores_every_site(plugin: Pruner) -> None:
    """``score_sites`` is ``(n_out, n_in)``, floating and finite, also for a layer without connections and for a full one."""
    for nnz in (_NNZ, 1, 0, _SHAPE[0] * _SHAPE[1]):
        score = plugin.score_sites(_trained(plugin, nnz))
        expect(
            isinstance(score, Tensor) and score.shape == _SHAPE and score.is_floating_point(),
            f"floating scores of shape {_SHAPE}",
            f"{getattr(score, 'dtype', type(score))} {tuple(getattr(score, 'shape', ()))}",
            "score every site, from conn.dense",
        )
        expect(bool(torch.isfinite(score).all()), "finite scores", "NaN or infinity", "guard divisions by zero")


def leaves_its_input_alone(plugin: Pruner) -> None:
    """``score_sites`` reads and never writes; ``before_step`` writes its own state only."""
    conn = _trained(plugin)
    assert conn.dense is not None
    before = frozen_copy(conn)
    plugin.score_sites(conn)
    touched = changed(before, conn)
    expect(not touched, "unchanged connections and state", f"changed: {', '.join(touched)}", "use x.abs(), not x.abs_()")
    plugin.before_step(conn)
    touched = [name for name in changed(before, conn) if not name.startswith(("state", "dense.state"))]
    expect(
        not touched, "before_step writes conn.state and conn.dense.state only", f"changed: {', '.join(touched)}", "weights are not yours"
    )


def is_deterministic(plugin: Pruner) -> None:
    """Same connections, same scores, whatever the global generators do."""
    seen = []
    for seed in (1, 2):
        disturb_global_seeds(seed)
        seen.append(plugin.score_sites(_trained(plugin)))
    expect(torch.equal(*seen), "equal scores in two calls", "they differ", "draw from conn.rng")


CHECKS = (says_that_it_needs_dense_values, scores_every_site, leaves_its_input_alone, is_deterministic)
