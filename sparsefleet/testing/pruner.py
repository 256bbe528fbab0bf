"""Checks for pruners that score one layer at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from sparsefleet.connections import Connections
from sparsefleet.plugin import Pruner
from sparsefleet.rng import Rng
from sparsefleet.sparsity.select import keep_best
from sparsefleet.testing.allocation import peak_bytes
from sparsefleet.testing.expect import expect, fail, heavy
from sparsefleet.testing.samples import (
    MANY,
    SMALL_DENSE,
    WIDE,
    WatchedRng,
    changed,
    disturb_global_seeds,
    frozen_copy,
    layer_of,
    many_connections,
    renumbered,
    rounded_to_half,
)

_SHAPE, _NNZ = (12, 20), 60
_BYTES_PER_CONNECTION = 128
"""Beyond the connections themselves: sixteen float64 or int64 numbers each."""


def _layer(plugin: Pruner, nnz: int = _NNZ, *, weight: Tensor | None = None, dtype: torch.dtype = torch.float64) -> Connections:
    """A layer after the first step of a training."""
    return _after_a_step(plugin, layer_of(_SHAPE, nnz, weight=weight, dtype=dtype))


def _after_a_step(plugin: Pruner, conn: Connections) -> Connections:
    plugin.before_step(conn)
    plugin.on_step(conn, 0.1, Rng("on-step"))
    return conn


def gives_one_score_per_connection(plugin: Pruner) -> None:
    """Scores are ``(nnz,)``, floating and finite, also for a single connection and for zero weights."""
    for nnz, weight in ((_NNZ, None), (1, None), (_NNZ, torch.zeros(_NNZ)), (_SHAPE[0] * _SHAPE[1], None)):
        _check_scores(plugin.score(_layer(plugin, nnz, weight=weight)), nnz)


def _check_scores(score: Tensor, nnz: int) -> None:
    expect(
        isinstance(score, Tensor) and score.shape == (nnz,) and score.is_floating_point(),
        f"a floating tensor of shape ({nnz},)",
        f"{getattr(score, 'dtype', type(score))} {tuple(getattr(score, 'shape', ()))}",
        "score the stored connections only: conn.weight, conn.grad and conn.state all have shape (nnz,)",
    )
    expect(bool(torch.isfinite(score).all()), "finite scores", "NaN or infinity", "guard divisions and logarithms against zero weights")


def survives_an_empty_layer(plugin: Pruner) -> None:
    """A layer that has lost its last connection has no scores, and does not end the trial."""
    mend = "max(), min() and quantile() refuse empty tensors: return early where conn.nnz is 0"
    try:
        score = plugin.score(_layer(plugin, 0))
    except Exception as error:  # noqa: BLE001  whatever it raises is the finding
        fail("no scores for a layer without connections", repr(error), mend)
    _check_scores(score, 0)


def keeps_the_precision(plugin: Pruner) -> None:
    """Scores are at least as fine as the weights: those of float64 weights are float64."""
    for dtype in (torch.float32, torch.float64):
        score = plugin.score(_layer(plugin, dtype=dtype))
        _check_scores(score, _NNZ)
        fine = torch.promote_types(score.dtype, dtype) == score.dtype
        mend = "leave out .float(), .half() and .bfloat16(): different weights would tie"
        expect(fine, f"{dtype} scores, or finer ones, for {dtype} weights", score.dtype, mend)
        expect(not rounded_to_half(score), f"scores as fine as {dtype}", "numbers that went through 16 bits on their way", mend)


def ranks_its_connections(plugin: Pruner) -> None:
    """A mask is no score: where it ties, the position in the layer decides who goes."""
    n = torch.unique(plugin.score(_layer(plugin))).numel()
    expect(
        n > 2,
        f"different scores for the {_NNZ} different weights",
        f"{n} different scores",
        "return the importance itself, e.g. conn.weight.abs(); the core finds the threshold that gives the exact count",
    )


def counts_exactly(plugin: Pruner) -> None:
    """The core keeps exactly the number that was asked, ties included."""
    for weight in (None, torch.full((_NNZ,), 0.5)):
        for n_keep in (0, 1, 7, _NNZ - 1, _NNZ):
            kept = int(keep_best(plugin.score(_layer(plugin, weight=weight)), n_keep).sum())
            expect(kept == n_keep, f"{n_keep} kept", kept, "return one finite number per connection and let the core select")


def leaves_ties_to_the_core(plugin: Pruner) -> None:
    """Of equal connections the earlier stay: a score that breaks ties must do so in this order. Random draws by site are excused."""
    n = _SHAPE[0] * _SHAPE[1]
    conn = layer_of(_SHAPE, n, weight=torch.full((n,), 0.5))
    conn.grad, conn.dense = torch.full((n,), 0.25, dtype=torch.float64), None
    conn.rng = watched = WatchedRng("ties")
    if plugin.needs_dense:
        return
    score = plugin.score(_after_a_step(plugin, conn)).double()
    if not watched.used:
        n_later = int((torch.diff(score) > 1e-9 * score.abs().max()).sum())
        expect(
            n_later == 0,
            "no later connection above an earlier one where all weights and gradients are equal",
            f"{n_later} are",
            "equal weights, equal scores: leave the order of ties to the core, or sort with stable=True, descending=True",
        )


def leaves_its_input_alone(plugin: Pruner) -> None:
    """``score`` reads and never writes; ``before_step`` writes its own state, and ``on_step`` weights and state."""
    conn = _layer(plugin)
    before = frozen_copy(conn)
    plugin.score(conn)
    touched = changed(before, conn)
    expect(not touched, "unchanged connections after score", f"changed: {', '.join(touched)}", "use x.abs(), not x.abs_()")
    conn = layer_of(_SHAPE, _NNZ)
    before = frozen_copy(conn)
    plugin.before_step(conn)
    touched = [name for name in changed(before, conn) if name in ("row", "col", "grad", "weight", "dense.weight", "dense.grad")]
    expect(not touched, "before_step writes state only", f"changed: {', '.join(touched)}", "weights and gradients are the optimizer's here")
    plugin.on_step(conn, 0.1, Rng("on-step"))
    touched = [name for name in changed(before, conn) if name in ("row", "col", "grad")]
    expect(not touched, "on_step writes weight and state only", f"changed: {', '.join(touched)}", "the core owns sites and gradients")


def scores_what_it_is_given(plugin: Pruner) -> None:
    """A score follows from this layer as it is now: not from other layers that were scored, nor from what these weights were before."""
    mend = "keep no cache by data_ptr(), id(), name or shape, and no maximum or mean of the first layer seen: compute from conn alone"
    seen = []
    for case in range(2):
        conn = _named(layer_of(_SHAPE, _NNZ), f"case-{case}")
        if case:  # another trial's layer comes first, with the same name
            plugin.score(_after_a_step(plugin, _named(layer_of(_SHAPE, _NNZ, weight=3 * conn.weight, seed=1), conn.layer)))
        seen.append(plugin.score(_after_a_step(plugin, conn)))
    drawn = WatchedRng("given")
    conn = replace(layer_of(_SHAPE, _NNZ), rng=drawn)
    plugin.score(_after_a_step(plugin, conn))
    if drawn.used:
        return
    expect(torch.equal(*seen), "the same scores after another layer was scored", "others", mend)
    now = conn.weight.flip(0) + 1.5 * conn.weight
    fresh = replace(conn, weight=now.clone())
    conn.weight.copy_(now)
    expect(torch.equal(plugin.score(conn), plugin.score(fresh)), "scores of the weights as they are now", "those of earlier ones", mend)


def _named(conn: Connections, name: str) -> Connections:
    return replace(conn, layer=name)


def declares_what_it_reads(plugin: Pruner) -> None:
    """Gradients and dense values are there for those who declare ``needs_grad`` and ``needs_dense``, and change nothing for others."""
    seen = plugin.score(_layer(plugin))
    conn = _layer(plugin)
    conn.grad, conn.dense = conn.grad if plugin.needs_grad else None, conn.dense if plugin.needs_dense else None
    missing = " or ".join(["conn.grad"] * (not plugin.needs_grad) + ["conn.dense"] * (not plugin.needs_dense))
    mend = "set needs_grad = True or needs_dense = True on the class, or do not read it"
    try:
        blind = plugin.score(conn)
    except Exception as error:  # noqa: BLE001  whatever it raises is the finding
        fail(f"scores without {missing}, which the class does not declare", repr(error), mend)
    expect(torch.equal(seen, blind), f"the same scores without {missing}, which the class does not declare", "others", mend)


def is_deterministic(plugin: Pruner) -> None:
    """Same connections, same scores: random draws come from ``conn.rng``, never from a global generator or ``hash()``."""
    disturb_global_seeds(1)
    first = plugin.score(_layer(plugin))
    disturb_global_seeds(2)
    second = plugin.score(_layer(plugin))
    expect(torch.equal(first, second), "equal scores in two calls", "they differ", "draw from conn.rng, e.g. conn.rng.at(conn.flat)")


def does_not_depend_on_order(plugin: Pruner) -> None:
    """Renumbering output or input units permutes the scores; not asked of plugins that draw random numbers by site."""
    if plugin.needs_dense:
        return
    conn = replace(layer_of(_SHAPE, _NNZ), dense=None)
    conn.rng = watched = WatchedRng("order")
    score = plugin.score(_after_a_step(plugin, conn))
    sides: tuple[Literal["output", "input"], ...] = ("output", "input")
    for units in sides:
        other, place = renumbered(conn, units)
        if not watched.used:
            moved = plugin.score(other)[place]
            expect(
                torch.allclose(score, moved, rtol=1e-12, atol=0),
                f"scores that move with their connection when {units} units are renumbered",
                f"{int((score != moved).sum())} of {_NNZ} scores changed",
                "do not use a connection's position as an importance",
            )


def allocates_by_connections(plugin: Pruner) -> None:
    """A 1,000,000 x 1,000,000 layer with 1,000 connections costs kilobytes."""
    if plugin.needs_dense:
        return
    bounded(lambda conn: plugin.score(_after_a_step(plugin, conn)))


def bounded(work: Callable[[Connections], object]) -> None:
    """Runs ``work(conn)`` on a small and on a very wide layer, and fails when it allocates by sites."""
    work(layer_of((40, 40), 100))  # lazy imports are not the plugin's doing
    mend = "work on (nnz,) tensors; never build a mask or matrix of out x in; per-unit sums: conn.per_row()"
    for width, limit in ((SMALL_DENSE, SMALL_DENSE * SMALL_DENSE), (WIDE, 16 * 2**20 + 8 * 2 * WIDE)):
        conn: Connections = layer_of((width, width), 1000)
        used = peak_bytes(functools.partial(work, conn))
        expect(used < limit, f"less than {limit / 2**20:.0f} MiB for a layer of {width:,} x {width:,}", f"{used / 2**20:.1f} MiB", mend)


@heavy
def scores_more_than_float32_counts(plugin: Pruner) -> None:
    """A layer of 2**24 + 1 connections: finite scores, an exact count, and at most 128 bytes per connection on the way."""
    if plugin.needs_dense:
        return
    conn = _after_a_step(plugin, many_connections())
    mend = "torch.multinomial, and torch.quantile in many versions, end at 2**24 elements; float32 sums stop growing there: let the core select"
    scores: list[Tensor] = []
    try:
        used = peak_bytes(lambda: scores.append(plugin.score(conn))) / MANY
    except Exception as error:  # noqa: BLE001  whatever it raises is the finding
        fail(f"scores of {MANY:,} connections", repr(error), mend)
    _check_scores(scores[0], MANY)
    kept = int(torch.count_nonzero(keep_best(scores[0], MANY - 2)))
    expect(kept == MANY - 2, f"{MANY - 2:,} kept", f"{kept:,}", mend)
    expect(
        used < _BYTES_PER_CONNECTION, f"less than {_BYTES_PER_CONNECTION} bytes per connection", f"{used:.0f}", "fewer (nnz,) temporaries"
    )


CHECKS = (
    gives_one_score_per_connection,
    survives_an_empty_layer,
    keeps_the_precision,
    ranks_its_connections,
    counts_exactly,
    leaves_ties_to_the_core,
    leaves_its_input_alone,
    scores_what_it_is_given,
    declares_what_it_reads,
    is_deterministic,
    does_not_depend_on_order,
    allocates_by_connections,
    scores_more_than_float32_counts,
)
