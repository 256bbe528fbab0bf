"""One update of a rewiring method on a layer of 4 million connections: choosing (scores and draws) and surgery apart, in training steps.

Every round times some steps, then one update; each part is divided by the median step of its own round. A step is forward, backward and
SGD with momentum at batch 64, activations kept feature-major.
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
from sparsefleet.nn import CsrLinear, FixedFanInLinear, Sparsifier
from sparsefleet.nn.projection import update_of
from sparsefleet.plugin import Progress

SHAPE, BATCH = Shape(20_000, 20_000, 0.01), 64
EVERY = 100
"""Steps from one update to the next, over which its surgery is spread."""
MOST_PERCENT = 2.0
STEPS, WARM_ROUNDS, TOTAL = 5, 2, 10**6
LAYERS = {"fixed-fan-in": FixedFanInLinear, "csr": CsrLinear}


def figures(run: Run) -> list[Figure]:
    """Surgery spread over the steps to the next update, and choosing in training steps; the part's id is ``REWIRER/LAYER``."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rewirer, layer = run.id.split("/")
    rounds = _rounds(rewirer, layer, run.pick(15, 2))
    run.keep([dict(zip(("step_ms", "choosing_ms", "surgery_ms"), row, strict=True)) for row in rounds])
    step, choosing, surgery = (median(column) for column in zip(*rounds, strict=True))
    about = run.note(f"{len(rounds)} updates; a step {step:.3g} ms, choosing {choosing:.3g} ms, surgery {surgery:.3g} ms")
    share = [100 * row[2] / row[0] / EVERY for row in rounds]
    steps = [row[1] / row[0] for row in rounds]
    return [
        Figure(
            f"surgery over {EVERY} steps: {run.id}", "% of a step", median(share), _ends(share), MOST_PERCENT, at_least=False, note=about
        ),
        Figure(f"choosing: {run.id}", "steps", median(steps), _ends(steps), note=about),
    ]


def _ends(values: list[float]) -> tuple[float, float]:
    return min(values), max(values)


def _rounds(rewirer: str, layer: str, n: int) -> list[tuple[float, float, float]]:
    """Milliseconds of a step, of choosing and of surgery, by update."""
    torch.manual_seed(0)
    module = LAYERS[layer](SHAPE.n_in, SHAPE.n_out, SHAPE.density)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, fused=True)
    sparsifier = Sparsifier(
        nn.Sequential(module), optimizer, rewirer=rewirer, layer=layer, density=SHAPE.density, total_steps=TOTAL, steps_per_epoch=EVERY
    )
    topology, method = sparsifier.topology, sparsifier.rewirer
    assert method is not None
    x, grad = torch.randn(SHAPE.n_in, BATCH).t().requires_grad_(), torch.randn(SHAPE.n_out, BATCH).t()

    def step() -> None:
        optimizer.zero_grad()
        x.grad = None
        module(x).backward(grad)
        optimizer.step()

    found = []
    for count in range(n + WARM_ROUNDS):
        topology.watch_absent(False)
        step_ms = median(_ms(step) for _ in range(STEPS))
        topology.watch_absent(method.needs_absent_grad)
        x.data.normal_()  # one gradient for ever would regrow what it dropped
        grad.normal_()
        step()  # whose gradient the method sees
        begun = time.perf_counter()
        ((name, conn),) = topology.connections("rewire", EVERY * (count + 1)).items()
        update = update_of(method, conn, Progress(EVERY * (count + 1), TOTAL, TOTAL), conn.nnz)
        chosen = time.perf_counter()
        change = topology.change(name, update.keep, update.new, method, conn)
        surgery_ms = 1e3 * (time.perf_counter() - chosen)
        if not change.n_grown:
            raise NotRun(f"{rewirer} changed nothing")
        found.append((step_ms, 1e3 * (chosen - begun), surgery_ms))
    return found[WARM_ROUNDS:]


def _ms(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - begun)
