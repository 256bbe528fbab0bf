"""Checks for pruners."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from sparsefleet.connections import Connections
from sparsefleet.plugin import Pruner
from sparsefleet.sparsity.select import keep_best
from sparsefleet.testing.allocation import peak_bytes
from sparsefleet.testing.expect import expect
from sparsefleet.testing.samples import SMALL_DENSE, WIDE, WatchedRng, changed, disturb_global_seeds, frozen_copy, layer_of, permuted_rows

_SHAPE, _NNZ = (12, 20), 60


def gives_one_score_per_connection(plugin: Pruner) -> None:
    """Scores are ``(nnz,)``, floating and finite, also for a single connection and for zero weights."""
    for nnz, weight in ((_NNZ, None), (1, None), (_NNZ, torch.zeros(_NNZ)), (_SHAPE[0] * _SHAPE[1], None)):
        score = plugin.score(layer_of(_SHAPE, nnz, weight=weight))
        expect(
            isinstance(score, Tensor) and score.shape == (nnz,) and score.is_floating_point(),
            f"a floating tensor of shape ({nnz},)",
            f"{getattr(score, 'dtype', type(score))} {tuple(getattr(score, 'shape', ()))}",
            "score the stored connections only: conn.weight, conn.grad and conn.state all have shape (nnz,)",
        )
        expect(bool(torch.isfinite(score).all()), "finite scores", "NaN or infinity", "guard divisions and logarithms against zero weights")


def counts_exactly(plugin: Pruner) -> None:
    """The core keeps exactly the number that was asked, ties included."""
    for weight in (None, torch.full((_NNZ,), 0.5)):
        for n_keep in (0, 1, 7, _NNZ - 1, _NNZ):
            kept = int(keep_best(plugin.score(layer_of(_SHAPE, _NNZ, weight=weight)), n_keep).sum())
            expect(kept == n_keep, f"{n_keep} kept", kept, "return one finite number per connection and let the core select")


def leaves_its_input_alone(plugin: Pruner) -> None:
    """``score`` reads and never writes."""
    conn = layer_of(_SHAPE, _NNZ)
    before = frozen_copy(conn)
    plugin.score(conn)
    expect(not changed(before, conn), "unchanged connections", f"changed: {', '.join(changed(before, conn))}", "use x.abs(), not x.abs_()")


def is_deterministic(plugin: Pruner) -> None:
    """Same connections, same scores: random draws come from ``conn.rng``, never from a global generator or ``hash()``."""
    disturb_global_seeds(1)
    first = plugin.score(layer_of(_SHAPE, _NNZ))
    disturb_global_seeds(2)
    second = plugin.score(layer_of(_SHAPE, _NNZ))
    expect(torch.equal(first, second), "equal scores in two calls", "they differ", "draw from conn.rng, e.g. conn.rng.at(conn.flat)")


def does_not_depend_on_order(plugin: Pruner) -> None:
    """Renumbering the output units permutes the scores; not asked of plugins that draw random numbers by site."""
    conn = layer_of(_SHAPE, _NNZ)
    conn.rng = watched = WatchedRng("order")
    score = plugin.score(conn)
    other, place = permuted_rows(conn)
    if not watched.used:
        moved = plugin.score(other)[place]
        expect(
            torch.allclose(score, moved, rtol=1e-12, atol=0),
            "scores that move with their connection when output units are renumbered",
            f"{int((score != moved).sum())} of {_NNZ} scores changed",
            "do not use a connection's position as an importance",
        )


def allocates_by_connections(plugin: Pruner) -> None:
    """A 1,000,000 x 1,000,000 layer with 1,000 connections costs kilobytes."""
    if plugin.needs_dense:
        return
    bounded(lambda conn: plugin.score(conn))


def bounded(work: Callable[[Connections], object]) -> None:
    """Runs ``work(conn)`` on a small and on a very wide layer, and fails when it allocates by sites."""
    work(layer_of((40, 40), 100))  # lazy imports are not the plugin's doing
    mend = "work on (nnz,) tensors; never build a mask or matrix of out x in; per-unit sums: conn.per_row()"
    for width, limit in ((SMALL_DENSE, SMALL_DENSE * SMALL_DENSE), (WIDE, 16 * 2**20 + 8 * 2 * WIDE)):
        conn: Connections = layer_of((width, width), 1000)
        used = peak_bytes(functools.partial(work, conn))
        expect(used < limit, f"less than {limit / 2**20:.0f} MiB for a layer of {width:,} x {width:,}", f"{used / 2**20:.1f} MiB", mend)


CHECKS = (
    gives_one_score_per_connection,
    counts_exactly,
    leaves_its_input_alone,
    is_deterministic,
    does_not_depend_on_order,
    allocates_by_connections,
)
