"""One pruning of a layer with 4 million connections to a tenth of them: choosing (scores and selection) and surgery apart, in training steps.

The layer is stored dense and masked, as pruners train. A criterion that takes several rounds, or batches of calibration, does all of them.
"""

from __future__ import annotations

import os
import time
from statistics import median

import torch
from torch import nn

from benchmarks.figures import Figure, Run
from benchmarks.updates.cost import BATCH, LR, STEPS
from sparsefleet.nn import MaskedLinear
from sparsefleet.nn.topology import Topology
from sparsefleet.plugin import DataInfo, Pruner
from sparsefleet.registry import Registry
from sparsefleet.sparsity.select import keep_best, keep_best_per_row
from sparsefleet.trial.calibrate import NetworkCalibration, score_whole_model

SIDE, DENSITY = 2_048, 0.1
"""4,194,304 connections."""


def figures(run: Run) -> list[Figure]:
    """Choosing and surgery in training steps; the part's id is ``PRUNER/masked``."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    pruner: Pruner = Registry().plugin_class("pruner", run.id.partition("/")[0])()
    rounds = [_round(pruner, n) for n in range(run.pick(7, 2) + 1)][1:]
    run.keep([dict(zip(("step_ms", "choosing_ms", "surgery_ms"), row, strict=True)) for row in rounds])
    step, choosing, surgery = (median(column) for column in zip(*rounds, strict=True))
    about = run.note(f"{len(rounds)} prunings; a step {step:.3g} ms, choosing {choosing:.3g} ms, surgery {surgery:.3g} ms")
    parts = {name: [row[i] / row[0] for row in rounds] for i, name in ((1, "choosing"), (2, "surgery"))}
    return [Figure(f"{name}: {run.id}", "steps", median(values), (min(values), max(values)), note=about) for name, values in parts.items()]


def _round(pruner: Pruner, seed: int) -> tuple[float, float, float]:
    """Milliseconds of a step, of choosing and of surgery."""
    torch.manual_seed(seed)
    module = MaskedLinear(SIDE, SIDE, 1.0, seed=seed)
    network = nn.Sequential(module)
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=0.9, fused=True)
    topology = Topology({"0": module}, optimizer, seed)
    module.layer_name = "0"
    topology.start(pruner)
    topology.watch_absent(pruner.needs_dense)
    x, y = torch.randn(BATCH, SIDE), torch.randint(SIDE, (BATCH,))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
        topology.enforce()

    times = []
    for _ in range(STEPS):
        begun = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - begun))
        topology.on_step(pruner, LR, 0)
    data = [(torch.randn(128, SIDE), torch.randint(10, (128,)))]
    choosing_ms = surgery_ms = 0.0
    n_rounds = pruner.rounds if pruner.needs_calibration else 1
    for i in range(1, n_rounds + 1):
        n_keep = round(SIDE * SIDE * DENSITY ** (i / n_rounds))
        begun = time.perf_counter()
        keep = _keep(pruner, topology, network, data, n_keep)
        chosen = time.perf_counter()
        topology.change("0", keep, torch.empty((2, 0), dtype=torch.int64))
        choosing_ms += 1e3 * (chosen - begun)
        surgery_ms += 1e3 * (time.perf_counter() - chosen)
    return median(times), choosing_ms, surgery_ms


def _keep(
    pruner: Pruner, topology: Topology, network: nn.Module, data: list[tuple[torch.Tensor, torch.Tensor]], n_keep: int
) -> torch.Tensor:
    if not pruner.needs_calibration:
        scores = topology.score(pruner, 0)["0"].reshape(-1)
    else:
        layers = topology.connections("prune", 0)
        info = DataInfo("classification", (SIDE,), SIDE)
        scores = score_whole_model(pruner, NetworkCalibration(network, topology.modules, layers, data, info))["0"]
    if pruner.per_row:
        conn = topology.connections("prune", 0)["0"]
        return keep_best_per_row(scores, conn.row, torch.full((SIDE,), n_keep // SIDE))
    return keep_best(scores, n_keep)
