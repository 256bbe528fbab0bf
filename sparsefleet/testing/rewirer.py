"""Checks for rewirers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from sparsefleet.connections import Connections, check_sites
from sparsefleet.errors import InvalidMask
from sparsefleet.plugin import Progress, Rewirer, Update
from sparsefleet.rng import Rng
from sparsefleet.testing.allocation import at_most, peak_bytes
from sparsefleet.testing.expect import expect, fail, heavy
from sparsefleet.testing.pruner import bounded
from sparsefleet.testing.samples import (
    FAR,
    FAR_BYTES,
    MANY,
    WatchedRng,
    changed,
    disturb_global_seeds,
    frozen_copy,
    layer_of,
    many_connections,
    renumbered,
    rounded_to_float32,
)

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
        (200, torch.full((200,), -0.5)),
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
    expect(
        keep.shape == (nnz,) and keep.dtype == torch.bool,
        f"keep: bool of shape ({nnz},)",
        f"{keep.dtype} {tuple(keep.shape)}",
        "use keep_best(score, n_keep)",
    )
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


def grows_anywhere(plugin: Rewirer) -> None:
    """Over 40 layers and streams what grows reaches every unit, and is not always what was just dropped."""
    if plugin.needs_dense:
        return
    rows, cols, n_back, n_grown = torch.zeros(_SHAPE[0]), torch.zeros(_SHAPE[1]), 0, 0
    for seed in range(40):
        conn = layer_of(_SHAPE, _NNZ, seed=seed)
        conn.state = dict(plugin.initial_state(conn))
        keep, new = plugin.update(conn, _MOMENTS[1], Rng("anywhere", seed), conn.nnz)
        n_grown += new.shape[1]
        n_back += int(torch.isin(new[0] * conn.n_in + new[1], conn.flat[~keep]).sum())
        rows += torch.bincount(new[0], minlength=_SHAPE[0])
        cols += torch.bincount(new[1], minlength=_SHAPE[1])
    if n_grown < 400:  # it hardly grows
        return
    expect(
        n_back < n_grown,
        "new sites among those that grow",
        "only sites that were dropped just before: nothing moves",
        "see conn.random_absent",
    )
    never = [
        f"{word} {unit}" for word, counts in (("output", rows), ("input", cols)) for unit in torch.nonzero(counts == 0).flatten().tolist()
    ]
    mend = "random draws end before their upper bound; a sorted list of candidates must be drawn from, not cut off"
    expect(not never, f"every unit reached by {n_grown:,} grown connections", f"never {', '.join(never[:6])}", mend)


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
    first = plugin.grown_weight(_layer(plugin, 0), sites, Rng("grown"))
    mend = "mean() and std() of no weights are NaN: give a fixed value where conn.nnz is 0"
    expect(bool(torch.isfinite(first).all()), "finite first weights in a layer that had lost all connections", first, mend)
    grown = Connections(conn.layer, conn.shape, sites[0], sites[1], weight)
    first_state, grown_state = plugin.initial_state(conn), plugin.initial_state(grown)
    expect(
        first_state.keys() == grown_state.keys(),
        f"state {sorted(first_state)}",
        sorted(grown_state),
        "give the same tensors to all connections",
    )
    for name, value in first_state.items():
        own = value.untyped_storage().data_ptr() != conn.weight.untyped_storage().data_ptr()
        expect(
            own, f"state {name!r} in memory of its own", "conn.weight itself, which the optimizer goes on changing", "conn.weight.clone()"
        )
    for name, value in grown_state.items():
        expect(value.shape == (5,), f"state {name!r} of shape (5,)", tuple(value.shape), "state is per connection: (nnz,)")


def is_due_by_the_clock(plugin: Rewirer) -> None:
    """``due`` depends on the progress alone, is False before the first step, and after ``stop`` where users set that."""
    expect(not plugin.due(Progress(0, 1000, 50)), "no update before the first step", "due at step 0", "ask for progress.step > 0")
    for progress in _MOMENTS:
        expect(plugin.due(progress) == plugin.due(progress), "the same answer twice", "it differs", "keep no state in the plugin")
        count = plugin.drop_count(_layer(plugin), progress)
        expect(0 <= count <= _NNZ, f"a drop count in [0, {_NNZ}]", count, "return how many, not a fraction")
    if "stop" in type(plugin).model_fields:
        late = [step for step in range(math.floor(1000 * plugin.stop) + 1, 1001) if plugin.due(Progress(step, 1000, 50))]
        mend = "progress.fraction < self.stop; a method that never stops has the class fact stop: ClassVar[float] = 1.0"
        expect(not late, f"no update after stop = {plugin.stop:g} of the training", f"due at step {late[:1]} of 1000", mend)


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
    mend = "allow nnz = 0: max(), min() and quantile() refuse empty tensors"
    try:
        update = _update(plugin, _layer(plugin, 0), _MOMENTS[1])
    except Exception as error:  # noqa: BLE001  whatever it raises is the finding
        fail("nothing kept and nothing grown in a layer without connections", repr(error), mend)
    expect(update.keep.numel() == 0 and update.new.shape == (2, 0), "nothing kept, nothing grown", update, mend)


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
    """``drop_score`` is one finite number per connection."""
    conn = _layer(plugin)
    score = plugin.drop_score(conn)
    expect(score.shape == (_NNZ,), f"shape ({_NNZ},)", tuple(score.shape), "score stored connections only")
    finite = not any(math.isnan(value) or math.isinf(value) for value in score.tolist())
    expect(finite, "finite scores", "NaN or infinity", "guard divisions against zero weights")


def does_not_depend_on_order(plugin: Rewirer) -> None:
    """Renumbering output or input units changes nothing about who is dropped; not asked where draws or whole units decide."""
    if plugin.needs_dense:
        return
    conn = _layer(plugin)
    sides: tuple[Literal["output", "input"], ...] = ("output", "input")
    conn.dense, conn.rng = None, (watched := WatchedRng("order"))
    absent = conn.best_absent_by_gradient, conn.best_absent_per_row_by_gradient
    by_score = plugin.drop_score(conn)
    drawn = watched.used
    by_update = plugin.update(conn, _MOMENTS[1], Rng("order"), conn.nnz).keep
    same = torch.equal(by_update, plugin.update(replace(conn, rng=Rng("other")), _MOMENTS[1], Rng("other"), conn.nnz).keep)
    for units in sides:
        other, place = renumbered(conn, units)
        if not drawn:
            moved = plugin.drop_score(other)[place]
            expect(
                torch.allclose(by_score.double(), moved.double(), rtol=1e-12, atol=0),
                f"drop scores that move with their connection when {units} units are renumbered",
                f"{int((by_score != moved).sum())} of {_NNZ} changed",
                "do not use a connection's position as an importance",
            )
        if same and not plugin.ablates_by:
            other.best_absent_by_gradient, other.best_absent_per_row_by_gradient = absent
            keep = plugin.update(other, _MOMENTS[1], Rng("order"), conn.nnz).keep[place]
            expect(
                torch.equal(by_update, keep),
                f"the same connections kept when {units} units are renumbered",
                f"{int((by_update != keep).sum())} of {_NNZ} others",
                "decide by weights, gradients and state, not by row or column numbers",
            )


def declares_what_it_reads(plugin: Rewirer) -> None:
    """Gradients, gradients of absent sites and dense values are there for those who declare them, and change nothing for others."""
    facts = {"needs_grad": plugin.needs_grad, "needs_dense": plugin.needs_dense}
    facts["needs_absent_grad"] = plugin.needs_absent_grad or plugin.needs_dense
    missing = ", ".join(name for name, declared in facts.items() if not declared)
    if not missing:
        return
    mend = f"declare what is read, of: {missing}, with = True on the class; or do not read conn.grad, conn.dense, conn.best_absent"
    seen, conn = _decisions(plugin, _layer(plugin)), _layer(plugin)
    conn.grad, conn.dense = conn.grad if plugin.needs_grad else None, conn.dense if plugin.needs_dense else None
    if not facts["needs_absent_grad"]:
        conn.best_absent_by_gradient = conn.best_absent_per_row_by_gradient = None
    try:
        blind = _decisions(plugin, conn)
    except Exception as error:  # noqa: BLE001  whatever it raises is the finding
        fail(f"an update without what the class does not declare ({missing})", repr(error), mend)
    same = all(torch.equal(a, b) for a, b in zip(seen, blind, strict=True))
    expect(same, f"the same update without what the class does not declare ({missing})", "another", mend)


def _decisions(plugin: Rewirer, conn: Connections) -> list[Tensor]:
    update = _update(plugin, conn, _MOMENTS[1])
    return [update.keep, update.new, plugin.drop_score(conn), plugin.grown_weight(conn, update.new, Rng("grown"))]


def grows_at_exact_sites(plugin: Rewirer) -> None:
    """In a layer of 100,003 x 99,989 grown sites are valid, and none went through float32, which rounds positions above 2**24."""
    if plugin.needs_dense:
        return
    conn = layer_of(FAR, 1000)
    conn.state = dict(plugin.initial_state(conn))
    with at_most(FAR_BYTES):
        update = _update(plugin, conn, Progress(50, 1000, 50))
        grown = {"update": (update.new, conn.select(update.keep)), "grow": (plugin.grow(conn, 100, Rng("grow")), conn)}
    mend = "keep positions in int64 from end to end: torch.linspace, .float() and true division round them"
    for where, (sites, held) in grown.items():
        try:
            flat = check_sites(sites, conn.shape, layer=conn.layer)
        except InvalidMask as error:
            fail(f"different sites inside 100,003 x 99,989 from {where}", error, mend)
        n_there = int(torch.isin(flat, held.flat).sum())
        expect(n_there == 0, f"absent sites from {where}", f"{n_there} are there", mend)
        expect(not rounded_to_float32(flat), f"exact sites from {where}", "positions that float32 has rounded", mend)


@heavy
def rewires_more_than_float32_counts(plugin: Rewirer) -> None:
    """2**24 + 1 connections are as many after an update, at a peak of at most 128 bytes per connection."""
    if plugin.needs_dense:
        return
    conn = many_connections()
    conn.state = dict(plugin.initial_state(conn))
    mend = "torch.quantile and torch.multinomial end at 2**24 elements, float32 counts there: use keep_best, rng.distinct and integers"
    updates: list[Update] = []
    try:
        used = peak_bytes(lambda: updates.append(_update(plugin, conn, Progress(50, 1000, 50)))) / MANY
    except Exception as error:  # noqa: BLE001  whatever it raises is the finding
        fail(f"an update of {MANY:,} connections", repr(error), mend)
    _check_shapes(updates[0], MANY)
    after = int(torch.count_nonzero(updates[0].keep)) + updates[0].new.shape[1]
    expect(after == MANY or plugin.varies_nnz, f"{MANY:,} connections after the update", f"{after:,}", mend)
    expect(used < 128, "less than 128 bytes per connection", f"{used:.0f}", "fewer (nnz,) temporaries")


CHECKS = (
    keeps_the_count,
    grows_at_absent_sites,
    grows_anywhere,
    leaves_its_input_alone,
    is_deterministic,
    starts_grown_connections,
    keeps_the_total,
    is_due_by_the_clock,
    drops_by_a_finite_score,
    does_not_depend_on_order,
    declares_what_it_reads,
    grows_at_exact_sites,
    survives_an_empty_layer,
    allocates_by_connections,
    rewires_more_than_float32_counts,
)
