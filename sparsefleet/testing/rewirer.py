"""Checks for rewirers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparsefleet.connections import Connections, check_sites
from sparsefleet.errors import InvalidMask
from sparsefleet.plugin import Progress, Rewirer, Update
from sparsefleet.rng import Rng
from sparsefleet.testing.expect import expect, fail
from sparsefleet.testing.pruner import bounded
from sparsefleet.testing.samples import changed, disturb_global_seeds, frozen_copy, layer_of

_SHAPE, _NNZ = (12, 20), 60
_SHAPES = (_SHAPE, (8, 12), (5, 6))
_MOMENTS = tuple(Progress(step, 1000, 50) for step in (1, 50, 500, 749, 1000))


def _layer(plugin: Rewirer, nnz: int = _NNZ, *, weight: Tensor | None = None, shape: tuple[int, int] = _SHAPE) -> Connections:
    conn = layer_of(shape, nnz, weight=weight)
    conn.state = dict(plugin.initial_state(conn))
    if plugin.needs_dense:
        plugin.on_step(conn, 0.1, Rng("first-step"))  # where such methods keep their dense averages
    return conn


def _update(plugin: Rewirer, conn: Connections, progress: Progress) -> Update:
    return plugin.update(conn, progress, Rng("update", progress.step), conn.nnz)


def keeps_the_count(plugin: Rewirer) -> None:
    """After an update the layer has exactly ``n_target`` connections, also when all weights tie, and at full or single occupancy."""
    for nnz, weight in (
        (_NNZ, None),
        (_NNZ, torch.full((_NNZ,), 0.5)),
        (_NNZ, torch.zeros(_NNZ)),
        (1, None),
        (_SHAPE[0] * _SHAPE[1], None),
    ):
        for progress in _MOMENTS:
            update = _update(plugin, _layer(plugin, nnz, weight=weight), progress)
            _check_shapes(update, nnz)
            after = int(update.keep.sum()) + update.new.shape[1]
            expect(
                after == nnz or plugin.varies_nnz,
                f"{nnz} connections after the update at step {progress.step}",
                f"{after} ({int(update.keep.sum())} kept, {update.new.shape[1]} grown)",
                "select by integer count with keep_best, never by a threshold; grow n_target minus what is kept",
            )


def _check_shapes(update: Update, nnz: int) -> None:
    keep, new = update
    expect(keep.shape == (nnz,) and keep.dtype == torch.bool, f"keep: bool of shape ({nnz},)", f"{keep.dtype} {tuple(keep.shape)}", "")
    expect(
        new.dim() == 2 and new.shape[0] == 2 and new.dtype == torch.int64,
        "new: int64 of shape (2, k), rows above columns",
        f"{new.dtype} {tuple(new.shape)}",
        "stack rows and columns: torch.stack([flat // n_in, flat % n_in])",
    )


def grows_at_absent_sites(plugin: Rewirer) -> None:
    """Grown sites are inside the layer, different, and not among the kept ones."""
    for progress in _MOMENTS:
        conn = _layer(plugin)
        keep, new = _update(plugin, conn, progress)
        try:
            flat = check_sites(new, conn.shape, layer=conn.layer)
        except InvalidMask as error:
            fail("different sites inside the layer", error, "use conn.random_absent(k, rng) or conn.best_absent(k)")
        n_there = int(torch.isin(flat, conn.flat[keep]).sum())
        expect(
            n_there == 0, "grown sites that are absent", f"{n_there} of {flat.numel()} are kept", "grow on conn.select(keep), not on conn"
        )


def leaves_its_input_alone(plugin: Rewirer) -> None:
    """``update`` describes the change and the core makes it; ``on_step`` writes weights and state only."""
    conn = _layer(plugin)
    before = frozen_copy(conn)
    _update(plugin, conn, _MOMENTS[2])
    touched = changed(before, conn)
    expect(not touched, "unchanged connections after update", f"changed: {', '.join(touched)}", "return an Update and write nothing")
    plugin.on_step(conn, 0.1, Rng("on-step"))
    touched = [name for name in changed(before, conn) if name in ("row", "col", "grad")]
    expect(not touched, "on_step writes weight and state only", f"changed: {', '.join(touched)}", "the core owns sites and gradients")


def is_deterministic(plugin: Rewirer) -> None:
    """Same connections and stream, same update."""
    results = []
    for seed in (1, 2):
        disturb_global_seeds(seed)
        conn = _layer(plugin)
        update = _update(plugin, conn, _MOMENTS[1])
        plugin.on_step(conn, 0.1, Rng("on-step"))
        results.append((update.keep, update.new, plugin.grown_weight(conn, update.new, Rng("grown")), conn.weight))
    same = all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    expect(same, "equal updates in two calls", "they differ", "draw from the rng argument, never from a global generator")


def starts_grown_connections(plugin: Rewirer) -> None:
    """First weights and first state have one finite value per grown connection."""
    conn = _layer(plugin)
    sites = conn.random_absent(5, Rng("sites"))
    weight = plugin.grown_weight(conn, sites, Rng("grown"))
    expect(weight.shape == (5,) and bool(torch.isfinite(weight).all()), "5 finite first weights", weight, "return (k,) for k sites")
    grown = Connections(conn.layer, conn.shape, sites[0], sites[1], weight)
    first, grown_state = plugin.initial_state(conn), plugin.initial_state(grown)
    expect(first.keys() == grown_state.keys(), f"state {sorted(first)}", sorted(grown_state), "give the same tensors to all connections")
    for name, value in grown_state.items():
        expect(value.shape == (5,), f"state {name!r} of shape (5,)", tuple(value.shape), "state is per connection: (nnz,)")


def is_due_by_the_clock(plugin: Rewirer) -> None:
    """``due`` depends on the progress alone and is False before the first step."""
    expect(not plugin.due(Progress(0, 1000, 50)), "no update before the first step", "due at step 0", "ask for progress.step > 0")
    for progress in _MOMENTS:
        expect(plugin.due(progress) == plugin.due(progress), "the same answer twice", "it differs", "keep no state in the plugin")
        count = plugin.drop_count(_layer(plugin), progress)
        expect(0 <= count <= _NNZ, f"a drop count in [0, {_NNZ}]", count, "return how many, not a fraction")


def keeps_the_total(plugin: Rewirer) -> None:
    """``redistribute`` moves connections between layers and neither makes nor loses any; no layer gets more than its sites."""
    for nnz in ((_NNZ, 12, 1), (_NNZ, 96, 5), (_SHAPE[0] * _SHAPE[1], 96, 30)):
        for progress in _MOMENTS:
            layers = {str(i): _layer(plugin, n, shape=shape) for i, (n, shape) in enumerate(zip(nnz, _SHAPES, strict=True))}
            target = plugin.redistribute(layers, progress)
            if target is None:
                return
            expect(
                plugin.redistributes, "the class fact redistributes = True", plugin.redistributes, "plans refuse a constant fan-in by it"
            )
            expect(sum(target.values()) == sum(nnz), f"{sum(nnz)} connections in all", sum(target.values()), "use sparsefleet.apportion")
            for name, conn in layers.items():
                update = plugin.update(conn, progress, Rng("update", progress.step), target[name])
                after = int(update.keep.sum()) + update.new.shape[1]
                expect(
                    after == target[name] <= conn.n_sites, f"{target[name]} of {conn.n_sites} sites", after, "grow n_target minus the kept"
                )


def survives_an_empty_layer(plugin: Rewirer) -> None:
    """A pruned-away layer must not crash the trial."""
    update = _update(plugin, _layer(plugin, 0), _MOMENTS[1])
    expect(update.keep.numel() == 0 and update.new.shape == (2, 0), "nothing kept, nothing grown", update, "allow nnz = 0")


def allocates_by_connections(plugin: Rewirer) -> None:
    """A 1,000,000 x 1,000,000 layer with 1,000 connections costs kilobytes."""
    if plugin.needs_dense:
        return

    def one_update(conn: Connections) -> None:
        conn.state = dict(plugin.initial_state(conn))
        plugin.on_step(conn, 0.1, Rng("on-step"))
        update = _update(plugin, conn, Progress(50, 1000, 50))
        plugin.grown_weight(conn, update.new, Rng("grown"))

    bounded(one_update)


def drops_by_a_finite_score(plugin: Rewirer) -> None:
    """``drop_score`` is one finite number per connection and does not depend on how output units are numbered."""
    conn = _layer(plugin)
    score = plugin.drop_score(conn)
    expect(score.shape == (_NNZ,), f"shape ({_NNZ},)", tuple(score.shape), "score stored connections only")
    finite = not any(math.isnan(value) or math.isinf(value) for value in score.tolist())
    expect(finite, "finite scores", "NaN or infinity", "guard divisions against zero weights")


CHECKS = (
    keeps_the_count,
    grows_at_absent_sites,
    leaves_its_input_alone,
    is_deterministic,
    starts_grown_connections,
    keeps_the_total,
    is_due_by_the_clock,
    drops_by_a_finite_score,
    survives_an_empty_layer,
    allocates_by_connections,
)
