"""One update of a rewiring method on a layer of 4 million connections: choosing (scores and draws) and surgery apart, in training steps.

Every round times some steps, then one update; each part is divided by the median step of its own round. A step is forward, backward and
SGD with momentum (without for methods that want none) at batch 64, activations kept feature-major. What a method does at every step is a third
part. Methods that need values at absent sites run on ``masked``, on a smaller layer that is less sparse.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

from benchmarks.figures import Figure, NotRun, Run
from benchmarks.ops.cases import Shape
from sparsefleet.nn import CsrLinear, FixedFanInLinear, MaskedLinear, Sparsifier
from sparsefleet.nn.projection import update_of
from sparsefleet.plugin import Progress, Rewirer
from sparsefleet.registry import Registry

BATCH = 64
EVERY = 100
"""Steps from one update to the next, over which its surgery is spread; an epoch has as many."""
MOST_PERCENT = 2.0
LR = 0.01
STEPS, WARM_ROUNDS, TOTAL = 5, 2, 10**6
LAYERS = {"fixed-fan-in": FixedFanInLinear, "csr": CsrLinear, "masked": MaskedLinear}
SHAPES = {"fixed-fan-in": Shape(20_000, 20_000, 0.01), "csr": Shape(20_000, 20_000, 0.01), "masked": Shape(6_400, 6_400, 0.1)}
HALF = Shape(2_880, 2_880, 0.5)
"""For a method whose pattern is its density."""


def figures(run: Run) -> list[Figure]:
    """Surgery spread over the steps to the next update, and choosing in training steps; the part's id is ``REWIRER/LAYER``."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rewirer, layer = run.id.split("/")
    every, rounds = _rounds(rewirer, layer, run.pick(15, 2))
    run.keep([dict(zip(("step_ms", "choosing_ms", "surgery_ms", "each_ms"), row, strict=True)) for row in rounds])
    step, choosing, surgery, each = (median(column) for column in zip(*rounds, strict=True))
    about = run.note(f"{len(rounds)} updates; a step {step:.3g} ms, choosing {choosing:.3g} ms, surgery {surgery:.3g} ms")
    share = [100 * row[2] / row[0] / every for row in rounds]
    steps = [row[1] / row[0] for row in rounds]
    target = MOST_PERCENT if layer != "masked" and every >= EVERY else None
    over = f"surgery over {every} steps" if every > 1 else "surgery of every step"
    found = [
        Figure(f"{over}: {run.id}", "% of a step", median(share), _ends(share), target, at_least=False, note=about),
        Figure(f"choosing: {run.id}", "steps", median(steps), _ends(steps), note=about),
    ]
    if each:
        always = [row[3] / row[0] for row in rounds]
        found.append(Figure(f"at every step: {run.id}", "steps", median(always), _ends(always), note=about))
    return found


def _ends(values: list[float]) -> tuple[float, float]:
    return min(values), max(values)


def _rounds(rewirer: str, layer: str, n: int) -> tuple[int, list[tuple[float, float, float, float]]]:
    """Steps between updates; milliseconds of a step, of choosing, of surgery and of the method's work at every step, by update."""
    torch.manual_seed(0)
    cls = Registry().plugin_class("rewirer", rewirer)
    shape = HALF if {"n", "m"} <= set(cls.model_fields) else SHAPES[layer]
    module = LAYERS[layer](shape.n_in, shape.n_out, shape.density)
    momentum = 0.0 if cls.needs_plain_sgd else 0.9
    optimizer = torch.optim.SGD(module.parameters(), lr=LR, momentum=momentum, fused=True)
    sparsifier = Sparsifier(
        nn.Sequential(module), optimizer, rewirer=rewirer, layer=layer, density=shape.density, total_steps=TOTAL, steps_per_epoch=EVERY
    )
    topology, method = sparsifier.topology, sparsifier.rewirer
    assert method is not None
    x, grad = torch.randn(shape.n_in, BATCH).t().requires_grad_(), torch.randn(shape.n_out, BATCH).t()

    def step() -> None:
        optimizer.zero_grad()
        x.grad = None
        module(x).backward(grad)
        optimizer.step()
        topology.enforce()

    acts, found, every = type(method).on_step is not Rewirer.on_step, [], method.every or EVERY
    for count in range(n + WARM_ROUNDS):
        topology.watch_absent(method.needs_dense)
        step_ms = median(_ms(step) for _ in range(STEPS))
        topology.watch_absent(method.needs_dense or method.needs_absent_grad)
        x.data.normal_()  # one gradient for ever would regrow what it dropped
        grad.normal_()
        step()  # whose gradient the method sees
        each_ms = _ms(lambda count=count: topology.on_step(method, LR, count)) if acts else 0.0
        progress = Progress(every * (count + 1), TOTAL, TOTAL)
        begun = time.perf_counter()
        layers = topology.connections("rewire", progress.step)
        ((name, conn),) = layers.items()
        target = (method.redistribute(layers, progress) or {name: topology.asked[name] if method.varies_nnz else conn.nnz})[name]
        update = update_of(method, conn, progress, target)
        chosen = time.perf_counter()
        change = topology.change(name, update.keep, update.new, method, conn)
        surgery_ms = 1e3 * (time.perf_counter() - chosen)
        if not change.n_grown and every >= EVERY:
            raise NotRun(f"{rewirer} changed nothing")
        found.append((step_ms, 1e3 * (chosen - begun), surgery_ms, each_ms))
    return every, found[WARM_ROUNDS:]


def _ms(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - begun)
